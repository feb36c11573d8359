/**
 * Why a token cap became what it is, taken out of the server's sentence so that it can be said in
 * the reader's language. A sentence that is not known is shown as it is.
 */
export interface Why {
  kind: 'floor' | 'part' | 'kept' | 'lessFloors' | 'unlimited' | 'locked' | 'service'
  /** What it used last month, of what all used. */
  used: { own: string; all: string } | null
  leftOver: string | null
}

const SHARED =
  /^(?:used (\d+) of (\d+) tokens last month|nobody used any tokens last month): (its floor|its part|it keeps its cap|what it had, less what floors took)(?:, and (\d+) left over by the division)?$/

const KINDS: Record<string, Why['kind']> = {
  'its floor': 'floor',
  'its part': 'part',
  'it keeps its cap': 'kept',
  'what it had, less what floors took': 'lessFloors',
}

const LEFT_OUT: Record<string, Why['kind']> = {
  'unlimited: it has no cap to share': 'unlimited',
  'locked: its cap stays': 'locked',
  'a service allocation: its cap stays': 'service',
}

export function readWhy(reason: string): Why | null {
  const leftOut = LEFT_OUT[reason]
  if (leftOut) return { kind: leftOut, used: null, leftOver: null }
  const found = SHARED.exec(reason)
  if (found === null) return null
  const [, own, all, kind, leftOver] = found
  return {
    kind: KINDS[kind!]!,
    used: own !== undefined && all !== undefined ? { own, all } : null,
    leftOver: leftOver ?? null,
  }
}
