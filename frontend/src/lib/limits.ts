/**
 * Limits as they stand: what is used, held and left of an amount, and how near that is.
 *
 * The server decides what is refused; this only divides for the eye, exactly, so that a bar is full
 * when and only when nothing is left.
 */
import { fromPico, pico } from './money'

export type Meter = 'tokens' | 'usd'
export type State = 'ok' | 'near' | 'critical' | 'exhausted' | 'paused' | 'unlimited'

export interface Standing {
  meter: Meter
  /** null: no limit. */
  amount: number | string | null
  used: number | string
  held: number | string
}

export interface Parts {
  used: number
  held: number
  left: number
  state: State
  remaining: number | string | null
  /** Of what is used; null without an amount, or with an amount of 0. */
  share: number | null
}

const units = (meter: Meter, value: number | string) =>
  meter === 'usd' ? pico(String(value)) : BigInt(value)

const NEAR = 75n
const CRITICAL = 90n

/** Shares of the bar (0 to 1), the state, and what is left. */
export function partsOf({ meter, amount, used, held }: Standing): Parts {
  const [spent, kept] = [units(meter, used), units(meter, held)]
  if (amount === null) {
    return { used: 0, held: 0, left: 1, state: 'unlimited', remaining: null, share: null }
  }
  const most = units(meter, amount)
  const rest = most - spent - kept
  const remaining = rest > 0n ? rest : 0n
  const shown = meter === 'usd' ? fromPico(remaining) : Number(remaining)
  if (most === 0n) {
    return { used: 1, held: 0, left: 0, state: 'exhausted', remaining: shown, share: null }
  }
  const ratio = (part: bigint) => Number((part * 1_000_000n) / most) / 1_000_000
  const usedShare = Math.min(1, ratio(spent))
  const heldShare = Math.min(1 - usedShare, ratio(kept))
  return {
    used: usedShare,
    held: heldShare,
    left: Math.max(0, 1 - usedShare - heldShare),
    state: stateOf(spent, most),
    remaining: shown,
    share: ratio(spent),
  }
}

function stateOf(used: bigint, amount: bigint): State {
  if (used >= amount) return 'exhausted'
  if (used * 100n >= amount * CRITICAL) return 'critical'
  return used * 100n >= amount * NEAR ? 'near' : 'ok'
}

export interface WindowParts {
  name: 'hour' | 'day' | 'month' | 'lifetime' | 'rolling'
  hours?: number
}

/** Takes `rolling:24h` apart. */
export function readWindow(window: string): WindowParts {
  const rolling = /^rolling:(\d+)h$/.exec(window)
  if (rolling) return { name: 'rolling', hours: Number(rolling[1]) }
  return { name: window as WindowParts['name'] }
}
