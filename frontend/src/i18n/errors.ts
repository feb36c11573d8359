/**
 * Errors as people read them: what happened, what to do, and the id that finds it in the logs.
 *
 * The server says what is wrong by a code and its values; its words are English, and are shown
 * only where we have none for the code.
 */
import i18next, { type TFunction } from 'i18next'

import { ApiError, type Schemas } from '@/api/client'

import { type Language, localeOf } from '.'

export interface Explained {
  title: string
  /** `lang` if the words are the server's own. */
  detail: { text: string; lang: 'en' | undefined } | null
  requestId: string | null
}

const KNOWN = new Set([0, 400, 401, 403, 404, 409, 412, 413, 422, 429, 500, 502, 503])

type Values = Schemas['FieldError']['values']

/** Values that are words themselves. */
const THINGS = new Set(['what', 'meter', 'unit', 'window', 'status'])

/** What is wrong, in the reader's words; undefined for a code that there are none for. */
export function faultWords(code?: string | null, values?: Values): string | undefined {
  if (!code || !i18next.exists(`faults.${code}`)) return undefined
  const number = new Intl.NumberFormat(localeOf(i18next.language as Language))
  const shown = Object.entries(values ?? {}).map(([name, value]) => {
    if (typeof value === 'number') return [name, number.format(value)]
    const thing = THINGS.has(name) ? i18next.t(`things.${value}`, { defaultValue: value }) : value
    return [name, thing]
  })
  return i18next.t(`faults.${code}`, Object.fromEntries(shown)) as string
}

/** What people call a field: of `limits[2].amount`, its last part. */
function fieldWords(field: string): string {
  const name = field.replace(/\[\d+\]$/, '').split('.').pop()!
  return i18next.t(`fields.${name}`, { defaultValue: name }) as string
}

export function explain(error: unknown, t: TFunction, language: Language): Explained {
  if (!(error instanceof ApiError)) {
    return { title: t('errors.page'), detail: null, requestId: null }
  }
  const kind = KNOWN.has(error.status) ? error.status : error.status >= 500 ? 500 : 400
  const title = t(`errors.status.${kind}`)
  // A 5xx says nothing that the title does not.
  const problem = error.status < 500 ? error.problem : null
  return { title, detail: problem && detailOf(problem, t, language), requestId: error.requestId }
}

function detailOf(
  problem: NonNullable<ApiError['problem']>,
  t: TFunction,
  language: Language,
): Explained['detail'] {
  const words = faultWords(problem.code, problem.values)
  const [one] = problem.errors ?? []
  if (words !== undefined) {
    const named = one !== undefined && one.code === problem.code
    const text = named ? t('errors.about', { field: fieldWords(one.field), said: words }) : words
    return { text, lang: undefined }
  }
  const said = problem.detail
  if (!said) return null
  return { text: language === 'en' ? said : t('errors.said', { said }), lang: 'en' }
}

/** What the server says about one field of a form; undefined if nothing. */
export function fieldError(error: unknown, field: string): string | undefined {
  if (!(error instanceof ApiError)) return undefined
  const one = error.problem?.errors?.find((each) => each.field === field)
  return one && (faultWords(one.code, one.values) ?? one.message)
}
