/** Caps as people type them: nothing is no cap, 0 blocks. */
import type { Meter } from './limits'
import { readCount, readUsd } from './money'

/** null: no cap; undefined: this is none. Leading and trailing blanks do not count. */
export function readCap(meter: 'usd', text: string): string | null | undefined
export function readCap(meter: 'tokens', text: string): number | null | undefined
export function readCap(meter: Meter, text: string): string | number | null | undefined
export function readCap(meter: Meter, text: string): string | number | null | undefined {
  if (text.trim() === '') return null
  return (meter === 'usd' ? readUsd(text) : readCount(text)) ?? undefined
}

/** What stands in the field of a cap that there is. */
export function writeCap(cap: string | number | null): string {
  return cap === null ? '' : String(cap)
}
