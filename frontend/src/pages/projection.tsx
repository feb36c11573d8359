/** When a cap is reached if use goes on as it does; nothing where nobody can tell. */
import type { Standing } from '@/api/queries'
import { useWords } from '@/i18n'
import { formatDay } from '@/lib/time'
import { useAmount } from '@/ui/format'

const METERS = [
  ['usd', 'cost_projection'],
  ['tokens', 'tokens_projection'],
] as const

export function Projection({ standing }: { standing: Standing }) {
  const { t, locale } = useWords()
  const shown = useAmount()
  const told = METERS.flatMap(([meter, field]) => {
    const found = standing[field]
    return found?.state === 'projected' && found.date ? [{ meter, ...found, on: found.date }] : []
  })
  if (told.length === 0) return null
  return (
    <>
      <dt>{t('projection.label')}</dt>
      <dd>
        {told.map(({ meter, on, per_day }) => (
          <p key={meter}>
            {t(`projection.reaches.${meter}`, { day: formatDay(on, locale) })}
            {per_day !== null && (
              <span className="text-soft">
                {' · '}
                {t('projection.rate', { amount: shown(meter, per_day) })}
              </span>
            )}
          </p>
        ))}
      </dd>
    </>
  )
}
