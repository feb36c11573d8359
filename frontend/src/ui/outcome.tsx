/** How a call ended, by icon and words; and which limit stood in the way of one that was refused. */
import type { Call, Outcome } from '@/api/queries'
import { useWords } from '@/i18n'

import { When, useAmount } from './format'
import type { IconName } from './icons'
import { useLimitName } from './limit-name'
import { type Tone, ToneBadge } from './meter'

const OUTCOMES: Record<Outcome, [Tone, IconName]> = {
  success: ['good', 'check'],
  client_disconnected: ['idle', 'close'],
  cut_off: ['warn', 'stop'],
  recovered: ['idle', 'rotate'],
  upstream_error: ['bad', 'warning'],
  rejected_model_mismatch: ['bad', 'stop'],
  rejected_inactive: ['bad', 'pause'],
  rejected_quota_exceeded: ['bad', 'stop'],
  rejected_cost_quota_exceeded: ['bad', 'stop'],
  rejected_chat_limit_exceeded: ['bad', 'stop'],
  rejected_quota_reserved: ['warn', 'clock'],
  rejected_unavailable: ['bad', 'warning'],
}

export const ALL_OUTCOMES = Object.keys(OUTCOMES) as Outcome[]

export function OutcomeBadge({ outcome }: { outcome: Outcome }) {
  const { t } = useWords()
  const [tone, icon] = OUTCOMES[outcome]
  return <ToneBadge tone={tone} icon={icon} label={t(`outcomes.${outcome}`)} />
}

/** Which limit, how much of it was used and held, and how much the call needed. */
export function Shortfall({ limit, name }: { limit: NonNullable<Call['limit']>; name?: string | undefined }) {
  const { t } = useWords()
  const shown = useAmount()
  const limitName = useLimitName()
  const { meter } = limit
  const parts = [
    [t('shortfall.amount'), limit.amount],
    [t('shortfall.used'), limit.used],
    [t('shortfall.held'), limit.held],
    [t('shortfall.needed'), limit.needed],
  ] as const
  return (
    <div className="flex flex-wrap items-baseline gap-x-4 gap-y-1 rounded-lg bg-bad-wash px-3 py-1.5 text-xs text-bad-ink">
      <strong className="font-semibold">{limitName(limit, name)}</strong>
      <dl className="flex flex-wrap gap-x-4 gap-y-0.5">
        {parts.map(([label, value]) => (
          <div key={label} className="flex gap-1.5">
            <dt>{label}</dt>
            <dd className="font-semibold tabular-nums">{shown(meter, value)}</dd>
          </div>
        ))}
        {limit.resets_at && (
          <div className="flex gap-1.5">
            <dt>{t('shortfall.resets')}</dt>
            <dd className="font-semibold">
              <When at={limit.resets_at} />
            </dd>
          </div>
        )}
      </dl>
    </div>
  )
}
