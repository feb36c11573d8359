/** Times as people read them: in the reader's own zone, with UTC beside where it decides. */

const formats = new Map<string, Intl.DateTimeFormat>()

function format(locale: string, options: Intl.DateTimeFormatOptions): Intl.DateTimeFormat {
  const name = locale + JSON.stringify(options)
  let known = formats.get(name)
  if (known === undefined) formats.set(name, (known = new Intl.DateTimeFormat(locale, options)))
  return known
}

export interface Shown {
  locale: string
  /** The reader's own if not given. */
  timeZone?: string | undefined
  now?: Date
  seconds?: boolean
}

/** `Nov 23, 09:04`, with the year if it is another one. */
export function formatTime(at: Date, { locale, timeZone, now = new Date(), seconds = false }: Shown): string {
  const year = { timeZone, year: 'numeric' } as const
  const other = format('en', year).format(at) !== format('en', year).format(now)
  return format(locale, {
    timeZone,
    month: 'short',
    day: 'numeric',
    hour: '2-digit',
    minute: '2-digit',
    hourCycle: 'h23',
    ...(seconds ? { second: '2-digit' } : {}),
    ...(other ? { year: 'numeric' } : {}),
  }).format(at)
}

/** To the second, for tables and titles. */
export function formatInstant(at: Date, { locale, timeZone }: Shown): string {
  return format(locale, {
    timeZone,
    dateStyle: 'medium',
    timeStyle: 'medium',
    hourCycle: 'h23',
  } as Intl.DateTimeFormatOptions).format(at)
}

/** The same in UTC, and said so. */
export function formatUtc(at: Date, { locale, now }: Shown): string {
  return `${formatTime(at, { locale, timeZone: 'UTC', ...(now ? { now } : {}) })} UTC`
}

/** `Nov 23` of a calendar date `2026-11-23`, which has no zone. */
export function formatDay(day: string, locale: string): string {
  return format(locale, { timeZone: 'UTC', month: 'short', day: 'numeric' }).format(new Date(day))
}

/** Whether the reader's clock differs from UTC's at an instant. */
export function differsFromUtc(at: Date, timeZone?: string): boolean {
  const of = (zone?: string) =>
    format('en', { timeZone: zone, dateStyle: 'short', timeStyle: 'short' }).format(at)
  return of(timeZone) !== of('UTC')
}

const STEPS: [Intl.RelativeTimeFormatUnit, number][] = [
  ['day', 86_400],
  ['hour', 3_600],
  ['minute', 60],
  ['second', 1],
]

/** `in 3 days`, `2 minutes ago`. */
export function formatRelative(at: Date, locale: string, now = new Date()): string {
  const seconds = Math.round((at.getTime() - now.getTime()) / 1000)
  const [unit, size] = STEPS.find(([, size]) => Math.abs(seconds) >= size) ?? ['second', 1]
  const relative = new Intl.RelativeTimeFormat(locale, { numeric: 'auto' })
  return relative.format(Math.trunc(seconds / size), unit)
}

/** `1:02:03`, `2:03`: how long something runs. */
export function formatDuration(seconds: number): string {
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60]
  const tail = `${h ? String(m).padStart(2, '0') : m}:${String(Math.floor(s)).padStart(2, '0')}`
  return h ? `${h}:${tail}` : tail
}

/** A calendar date in a zone, as `<input type="date">` and the API write it. */
export function isoDate(at: Date, timeZone?: string): string {
  const parts = format('en-CA', { timeZone, year: 'numeric', month: '2-digit', day: '2-digit' })
  return parts.format(at)
}
