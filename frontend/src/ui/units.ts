/** Quantities in their own units: `1,200 input tokens, 3 pages`. */
import { useWords } from '@/i18n'
import { formatCount } from '@/lib/money'

export function useUnits() {
  const { t, locale } = useWords()
  return (units: Record<string, number>) =>
    Object.entries(units)
      .sort(([, a], [, b]) => b - a)
      .map(([unit, count]) => t(`units.${unit}`, { count, shown: formatCount(count, locale) }))
      .join(t('common.and'))
}
