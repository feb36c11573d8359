/**
 * Money and counts as people read them.
 *
 * USD come as decimal strings and stay so: the formatter takes them digit by digit, so nothing is
 * rounded on the way to it. What is computed here (a share of a bar, a sum in a chart) is for the
 * eye only.
 */

/** A decimal string, as the API writes money. */
export type Usd = string

const formats = new Map<string, Intl.NumberFormat>()

function format(locale: string, options: Intl.NumberFormatOptions): Intl.NumberFormat {
  const name = locale + JSON.stringify(options)
  let known = formats.get(name)
  if (known === undefined) formats.set(name, (known = new Intl.NumberFormat(locale, options)))
  return known
}

const usd = (locale: string) =>
  ({
    style: 'currency',
    currency: 'USD',
    // Where $ is said of another currency too, which one it is has to be told.
    currencyDisplay: locale.startsWith('en') ? 'narrowSymbol' : 'symbol',
  }) as const

/** Up to cents from a dollar on; below that as many digits as tell something. */
export function formatUsd(amount: Usd, locale: string, round: 'near' | 'down' = 'near'): string {
  const size = Math.abs(Number(amount))
  const roundingMode = round === 'down' ? 'trunc' : 'halfExpand'
  const digits =
    size === 0 || size >= 1
      ? { minimumFractionDigits: 2, maximumFractionDigits: 2 }
      : size >= 0.01
        ? { minimumFractionDigits: 2, maximumFractionDigits: 4 }
        : { maximumSignificantDigits: 2 }
  const options = { ...usd(locale), ...digits, roundingMode } as Intl.NumberFormatOptions
  return format(locale, options).format(amount as Intl.StringNumericLiteral)
}

/** To the last digit. */
export function formatUsdExact(amount: Usd, locale: string): string {
  const options = { ...usd(locale), minimumFractionDigits: 2, maximumFractionDigits: 12 }
  return format(locale, options).format(amount as Intl.StringNumericLiteral)
}

/** Tokens, calls, pages: with separators. */
export function formatCount(count: number | string, locale: string): string {
  return format(locale, { maximumFractionDigits: 3 }).format(count as number)
}

/** As few digits as a chart's axis has room for. */
export function formatCompact(count: number, locale: string): string {
  return format(locale, { notation: 'compact', maximumFractionDigits: 1 }).format(count)
}

/** Whole percents, never more than there are; what is there is never 0 %. */
export function formatPercent(share: number, locale: string): string {
  const { format: shown } = format(locale, {
    style: 'percent',
    maximumFractionDigits: 0,
    roundingMode: 'trunc',
  } as Intl.NumberFormatOptions)
  return share > 0 && share < 0.01 ? `< ${shown(0.01)}` : shown(share)
}

/** Reads what somebody typed as USD; null if it is not. `12`, `12.50`, `$1,200` are. */
export function readUsd(text: string): Usd | null {
  const bare = text.trim().replace(/^(US)?\$\s*/i, '').replace(/,(?=\d{3}(\D|$))/g, '')
  return /^\d{1,9}(\.\d{1,9})?$/.test(bare) ? bare : null
}

/** Reads what somebody typed as a count; null if it is not. `5000`, `5,000`, `5k`, `1.5M` are. */
export function readCount(text: string): number | null {
  const bare = text.trim().replace(/[,_\s](?=\d{3}(\D|$))/g, '')
  const match = /^(\d{1,15})(?:\.(\d{1,6}))?\s*([kKmM]?)$/.exec(bare)
  if (match === null) return null
  const zeros = match[3] === '' ? 0 : match[3]!.toLowerCase() === 'k' ? 3 : 6
  const fraction = match[2] ?? ''
  if (fraction.length > zeros) return null
  const count = Number(match[1] + fraction.padEnd(zeros, '0'))
  return Number.isSafeInteger(count) ? count : null
}

/** Reads an amount of a meter as the API takes it; null if it is none. */
export function readAmount(meter: 'usd' | 'tokens', text: string): string | null {
  const read = meter === 'usd' ? readUsd(text) : readCount(text)
  return read === null ? null : String(read)
}

const SCALE = 12

/** A decimal string as an integer of 10⁻¹² USD, for exact sums and comparisons. */
export function pico(amount: Usd): bigint {
  const [whole = '0', fraction = ''] = amount.replace('-', '').split('.')
  const size = BigInt(whole + fraction.slice(0, SCALE).padEnd(SCALE, '0'))
  return amount.startsWith('-') ? -size : size
}

/** The inverse of `pico`. */
export function fromPico(amount: bigint): Usd {
  const sign = amount < 0n ? '-' : ''
  const digits = (amount < 0n ? -amount : amount).toString().padStart(SCALE + 1, '0')
  const fraction = digits.slice(-SCALE).replace(/0+$/, '').padEnd(2, '0')
  return `${sign}${digits.slice(0, -SCALE)}.${fraction}`
}

export function sumUsd(amounts: readonly Usd[]): Usd {
  return fromPico(amounts.reduce((sum, amount) => sum + pico(amount), 0n))
}
