/**
 * Words: which language is spoken, and its words: a file for everybody, one for the pages of
 * administration, which is loaded with the first of them, and one for what the server finds wrong,
 * which is loaded once it does.
 *
 * Keys are the same in every language (a test proves it). The reader's choice is kept in the
 * browser; without one, the browser's own languages decide.
 */
import i18next from 'i18next'
import { initReactI18next, useTranslation } from 'react-i18next'

export const LANGUAGES = { en: 'English', 'zh-TW': '繁體中文' } as const
export type Language = keyof typeof LANGUAGES

const CHOICE = 'spendgate.language'
type Files = Record<Language, () => Promise<{ default: object }>>
const FILES: Files = {
  en: () => import('./en.json'),
  'zh-TW': () => import('./zh-TW.json'),
}
const ADMIN_FILES: Files = {
  en: () => import('./en.admin.json'),
  'zh-TW': () => import('./zh-TW.admin.json'),
}
const ERROR_FILES: Files = {
  en: () => import('./en.errors.json'),
  'zh-TW': () => import('./zh-TW.errors.json'),
}

const spoken = new Set<() => Promise<{ default: object }>>()
const wanted = [FILES]

function preferred(): Language {
  const chosen = localStorage.getItem(CHOICE)
  if (chosen !== null && chosen in LANGUAGES) return chosen as Language
  for (const language of navigator.languages) {
    if (language.toLowerCase().startsWith('zh')) return 'zh-TW'
    if (language.toLowerCase().startsWith('en')) return 'en'
  }
  return 'en'
}

async function load(language: Language): Promise<void> {
  for (const files of wanted) {
    const file = files[language]
    if (spoken.has(file)) continue
    i18next.addResourceBundle(language, 'translation', (await file()).default, true)
    spoken.add(file)
  }
  document.documentElement.lang = language === 'zh-TW' ? 'zh-Hant-TW' : language
}

export async function startWords(): Promise<void> {
  const language = preferred()
  await i18next.use(initReactI18next).init({
    lng: language,
    fallbackLng: false,
    resources: {},
    interpolation: { escapeValue: false },
    returnNull: false,
  })
  await load(language)
}

/** Load the words of administration, in this language and in every other one from now on. */
export async function startAdminWords(): Promise<void> {
  await want(ADMIN_FILES, ERROR_FILES)
}

/** The same of what the server finds wrong; if they cannot be had, its own words must do. */
export async function startErrorWords(): Promise<void> {
  await want(ERROR_FILES).catch(() => {})
}

async function want(...files: Files[]): Promise<void> {
  for (const one of files) if (!wanted.includes(one)) wanted.push(one)
  await load(i18next.language as Language)
}

export async function speak(language: Language): Promise<void> {
  localStorage.setItem(CHOICE, language)
  await load(language)
  await i18next.changeLanguage(language)
}

/** The words, and the locale in which numbers and times are written. */
export function useWords() {
  const { t, i18n } = useTranslation()
  const language = i18n.language as Language
  return { t, language, locale: localeOf(language) }
}

/** The reader's own kind of English (dates differ), else the language's. */
export function localeOf(language: Language): string {
  const own = navigator.languages.find((tag) => tag.startsWith(language.slice(0, 2)))
  if (language === 'en' && own !== undefined) return own
  return language === 'en' ? 'en-GB' : 'zh-TW'
}
