/** Amounts and times, written in the reader's locale, exact on demand. */
import { useWords } from '@/i18n'
import type { Meter } from '@/lib/limits'
import { type Usd, formatCount, formatUsd, formatUsdExact } from '@/lib/money'
import { differsFromUtc, formatInstant, formatRelative, formatTime, formatUtc } from '@/lib/time'

/** USD; null is unpriced: not known, never 0. */
export function Money({ usd, round }: { usd: Usd | null | undefined; round?: 'near' | 'down' }) {
  const { t, locale } = useWords()
  if (usd === null || usd === undefined) {
    return (
      <span className="text-soft" title={t('common.unpricedHint')}>
        {t('common.unpriced')}
      </span>
    )
  }
  return (
    <span className="tabular-nums" title={formatUsdExact(usd, locale)}>
      {formatUsd(usd, locale, round)}
    </span>
  )
}

export function Count({ value }: { value: number | string }) {
  const { locale } = useWords()
  return <span className="tabular-nums">{formatCount(value, locale)}</span>
}

/** An amount of a meter, with its unit. */
export function useAmount() {
  const { t, locale } = useWords()
  return (meter: Meter | string, value: number | string, round?: 'near' | 'down') =>
    meter === 'usd'
      ? formatUsd(String(value), locale, round)
      : t('common.tokens', { count: Number(value), shown: formatCount(value, locale) })
}

/** An instant: by the reader's clock, with UTC and the seconds on demand. */
export function When({
  at,
  utc = false,
  relative = false,
  seconds = false,
}: {
  at: string
  /** With UTC written out: where the instant decides something. */
  utc?: boolean
  relative?: boolean
  /** Where several things happen within a minute. */
  seconds?: boolean
}) {
  const { locale } = useWords()
  const date = new Date(at)
  const local = formatTime(date, { locale, seconds })
  const shown = relative ? formatRelative(date, locale) : local
  const exact = `${formatInstant(date, { locale })} (${formatUtc(date, { locale })})`
  return (
    <time dateTime={at} title={exact} className="tabular-nums">
      <span className="md:whitespace-nowrap">{shown}</span>
      {utc && <span className="text-soft"> ({differsFromUtc(date) ? formatUtc(date, { locale }) : 'UTC'})</span>}
    </time>
  )
}
