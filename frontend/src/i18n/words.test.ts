import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'

import { expect, test } from 'vitest'

import enAdmin from './en.admin.json'
import enErrors from './en.errors.json'
import enOwn from './en.json'
import zhAdmin from './zh-TW.admin.json'
import zhErrors from './zh-TW.errors.json'
import zhOwn from './zh-TW.json'

const en = { ...enOwn, ...enAdmin, ...enErrors }
const zh = { ...zhOwn, ...zhAdmin, ...zhErrors }

type Tree = { [key: string]: string | Tree }

const PLURAL = /_(zero|one|two|few|many|other)$/

function leaves(tree: Tree, prefix = ''): [string, string][] {
  return Object.entries(tree).flatMap(([key, value]) =>
    typeof value === 'string' ? [[prefix + key, value]] : leaves(value, `${prefix}${key}.`),
  ) as [string, string][]
}

const LANGUAGES = { en: new Map(leaves(en)), 'zh-TW': new Map(leaves(zh)) }

/** Chinese has one form where English has two. */
const names = (words: Map<string, string>) =>
  new Set([...words.keys()].map((key) => key.replace(PLURAL, '')))

const slots = (text: string) => new Set(text.match(/\{\{\s*\w+/g) ?? [])

test('both languages have every key', () => {
  expect([...names(LANGUAGES['zh-TW'])].sort()).toEqual([...names(LANGUAGES.en)].sort())
})

test('a word is in the same file of every language', () => {
  expect(Object.keys(zhAdmin)).toEqual(Object.keys(enAdmin))
  expect(Object.keys(zhOwn)).toEqual(Object.keys(enOwn))
  expect(Object.keys(zhErrors)).toEqual(Object.keys(enErrors))
})

test('nothing is left empty', () => {
  for (const [language, words] of Object.entries(LANGUAGES)) {
    for (const [key, text] of words) expect(text.trim(), `${language} ${key}`).not.toBe('')
  }
})

test('every plural has the forms its language needs', () => {
  for (const [language, words] of Object.entries(LANGUAGES)) {
    const needed = new Intl.PluralRules(language).resolvedOptions().pluralCategories
    for (const key of words.keys()) {
      if (!PLURAL.test(key)) continue
      for (const form of needed) {
        expect(words.has(key.replace(PLURAL, `_${form}`)), `${language} ${key}`).toBe(true)
      }
    }
  }
})

test('a translation fills the same slots', () => {
  for (const [key, text] of LANGUAGES.en) {
    const translated =
      LANGUAGES['zh-TW'].get(key) ?? LANGUAGES['zh-TW'].get(key.replace(PLURAL, '_other'))
    expect(slots(translated!), key).toEqual(slots(text.replace(/\{\{count\}\}/, '{{count}}')))
  }
})

test('Chinese is written as in Taiwan', () => {
  const simplified = [...'额费钥请处时间调户设页码对话错误删认证账单']
  for (const [key, text] of LANGUAGES['zh-TW']) {
    expect(simplified.filter((one) => text.includes(one)), key).toEqual([])
  }
})

const source = (directory: string): string =>
  readdirSync(directory, { withFileTypes: true })
    .map((entry) => {
      const path = join(directory, entry.name)
      if (entry.isDirectory()) return source(path)
      return /\.tsx?$/.test(entry.name) && !/\.test\./.test(entry.name)
        ? readFileSync(path, 'utf8')
        : ''
    })
    .join('\n')

test('every word that a page asks for is there', () => {
  const known = names(LANGUAGES.en)
  const asked = [...source(join(import.meta.dirname, '..')).matchAll(/\bt\(\s*'([^']+)'/g)]
  expect(asked.length).toBeGreaterThan(50)
  for (const [, key] of asked) expect(known, `t('${key}')`).toContain(key)
})

test('every word that is there is asked for', () => {
  const text = source(join(import.meta.dirname, '..'))
  // Of keys that are put together, the part before what varies is in the source.
  const families = [...text.matchAll(/\bt\(\s*`([\w.-]+\.)\$\{/g)].map(([, family]) => family!)
  const unused = [...names(LANGUAGES.en)].filter(
    (key) => !text.includes(`'${key}'`) && !families.some((family) => key.startsWith(family)),
  )
  expect(unused).toEqual([])
})
