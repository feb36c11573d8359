/** Errors as people read them: what happened, what to do, and the id that finds it in the logs. */
import type { TFunction } from 'i18next'

import { ApiError } from '@/api/client'

import type { Language } from '.'

export interface Explained {
  title: string
  /** In the server's own words, which are English. */
  detail: { text: string; lang: 'en' } | null
  requestId: string | null
}

const KNOWN = new Set([0, 400, 401, 403, 404, 409, 412, 413, 422, 429, 500, 502, 503])

export function explain(error: unknown, t: TFunction, language: Language): Explained {
  if (!(error instanceof ApiError)) {
    return { title: t('errors.page'), detail: null, requestId: null }
  }
  const kind = KNOWN.has(error.status) ? error.status : error.status >= 500 ? 500 : 400
  const said = error.problem?.detail
  // A 5xx says nothing that the title does not.
  const telling = said && error.status < 500
  return {
    title: t(`errors.status.${kind}`),
    detail: telling ? { text: language === 'en' ? said : t('errors.said', { said }), lang: 'en' } : null,
    requestId: error.requestId,
  }
}

/** What the server says about one field of a form; null if nothing. */
export function fieldError(error: unknown, field: string): string | undefined {
  if (!(error instanceof ApiError)) return undefined
  return error.problem?.errors?.find((one) => one.field === field)?.message
}
