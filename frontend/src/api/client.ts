/**
 * The client: one typed way to the server.
 *
 * Owns the session's CSRF token, and the one error that everything that goes wrong becomes. Knows
 * no page and no word: see `i18n/errors.ts`.
 */
import createClient from 'openapi-fetch'

import type { components, paths } from './schema'

export type Schemas = components['schemas']
export type Problem = Schemas['ProblemDocument']

/** Something that the server refused, or that never reached it (status 0). */
export class ApiError extends Error {
  readonly status: number
  readonly problem: Problem | null
  readonly requestId: string | null
  readonly retryAfter: number | null

  constructor(status: number, problem: Problem | null, response?: Response) {
    super(problem?.detail ?? `HTTP ${status}`)
    this.status = status
    this.problem = problem
    this.requestId = response?.headers.get('x-request-id') ?? null
    const wait = response?.headers.get('retry-after')
    this.retryAfter = wait ? Number(wait) : null
  }
}

let csrfToken: string | null = null
let onSignedOut: () => void = () => {}
let onProblem: () => Promise<void> = async () => {}

export function setCsrfToken(token: string | null): void {
  csrfToken = token
}

/** What is done when the server says that there is no session (any more). */
export function setOnSignedOut(then: () => void): void {
  onSignedOut = then
}

/** What is made ready before somebody is told of a problem. */
export function setOnProblem(then: () => Promise<void>): void {
  onProblem = then
}

const SAFE = new Set(['GET', 'HEAD'])

export const api = createClient<paths>({ baseUrl: window.location.origin })

api.use({
  onRequest({ request }) {
    if (!SAFE.has(request.method) && csrfToken !== null) {
      request.headers.set('X-CSRF-Token', csrfToken)
    }
    return request
  },
})

interface Answer<T> {
  data?: T
  error?: unknown
  response: Response
}

/** What the server answered; throws an `ApiError` if it is not what was asked for. */
export async function ok<T>(asked: Promise<Answer<T>>): Promise<T> {
  let answer: Answer<T>
  try {
    answer = await asked
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') throw error
    throw new ApiError(0, null)
  }
  if (answer.response.ok) return answer.data as T
  const { response, error } = answer
  const problem = typeof error === 'object' && error !== null ? (error as Problem) : null
  if (response.status === 401 && !response.url.endsWith('/api/auth/login')) onSignedOut()
  if (problem !== null) await onProblem()
  throw new ApiError(response.status, problem, response)
}

interface Page<T> {
  items: T[]
  next?: string | null | undefined
}

/** All items of a list that has pages, for lists that are short by their nature. */
export async function everything<T>(page: (cursor?: string) => Promise<Page<T>>): Promise<T[]> {
  const items: T[] = []
  let cursor: string | undefined
  do {
    const { items: more, next } = await page(cursor)
    items.push(...more)
    cursor = next ?? undefined
  } while (cursor !== undefined)
  return items
}
