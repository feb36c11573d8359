/** Rates as people read them: so much for so many of a unit, to the last digit. */
import type { Rate } from '@/api/admin-setup'
import { useWords } from '@/i18n'
import { formatCompact, formatCount, formatUsdExact } from '@/lib/money'

/** Every unit of the glossary, the most common first. */
export const UNITS = [
  'input_token',
  'cached_input_token',
  'cache_write_token',
  'output_token',
  'reasoning_token',
  'input_audio_token',
  'cached_input_audio_token',
  'output_audio_token',
  'input_image_token',
  'output_image_token',
  'page',
  'character',
  'second',
  'image',
  'query',
  'request',
] as const

export function useRateText() {
  const { t, locale, language } = useWords()
  return ({ usd, per }: Pick<Rate, 'usd' | 'per'>) => {
    const amount = formatUsdExact(usd, locale)
    if (per === 1) return amount
    // 1M is shorter than 1,000,000; what would not be exact is written out.
    const round = per % 1_000_000 === 0 || (per % 1_000 === 0 && per < 1_000_000)
    const shown = round ? formatCompact(per, language === 'en' ? 'en-US' : locale) : formatCount(per, locale)
    return t('adminPrices.per', { amount, per: shown })
  }
}

export function Rates({ rates }: { rates: readonly Rate[] }) {
  const { t } = useWords()
  const text = useRateText()
  return (
    <ul className="flex flex-col gap-0.5">
      {inOrder(rates).map((rate) => (
        <li key={rate.unit} className="flex flex-wrap gap-x-2">
          <span className="text-soft">{t(`adminPrices.units.${rate.unit}`)}</span>
          <span className="tabular-nums">{text(rate)}</span>
        </li>
      ))}
    </ul>
  )
}

/** Rates, or what compares them, in the order of `UNITS`. */
export function inOrder<Of extends { unit: string }>(rates: readonly Of[]): Of[] {
  const place = (unit: string) => UNITS.indexOf(unit as (typeof UNITS)[number])
  return [...rates].sort((one, other) => place(one.unit) - place(other.unit))
}
