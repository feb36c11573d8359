/** Why somebody who comes from their identity provider is not let in, as the address says it. */
const REASONS = [
  'again',
  'declined',
  'disabled',
  'expired',
  'taken',
  'unknown',
  'unlinked',
  'unproven',
  'unreachable',
  'unverified',
] as const

interface Refusal {
  why: (typeof REASONS)[number]
  requestId: string | null
}

/** What is said behind the `#`: only what we may have written, whoever made the link. */
export function refusalIn(hash: string): Refusal | null {
  const said = new URLSearchParams(hash.slice(1))
  const why = REASONS.find((one) => one === said.get('sign-in'))
  if (why === undefined) return null
  const id = said.get('request-id') ?? ''
  return { why, requestId: /^[\w.:-]{1,128}$/.test(id) ? id : null }
}
