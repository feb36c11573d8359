/** The bar in three parts (used, held, left), and the badge that says how near the end is. */
import { useWords } from '@/i18n'
import { type Meter as MeterName, type State, partsOf } from '@/lib/limits'
import { formatCount, formatPercent, formatUsd } from '@/lib/money'

import { Icon, type IconName } from './icons'

const STATES: Record<State, { icon: IconName; badge: string; bar: string }> = {
  ok: { icon: 'check', badge: 'bg-accent-wash text-accent-strong', bar: 'text-ok' },
  near: { icon: 'warning', badge: 'bg-near-wash text-near-ink', bar: 'text-near' },
  critical: { icon: 'alert', badge: 'bg-critical-wash text-critical-ink', bar: 'text-critical' },
  exhausted: { icon: 'stop', badge: 'bg-bad-wash text-bad-ink', bar: 'text-bad' },
  paused: { icon: 'pause', badge: 'bg-idle-wash text-idle-ink', bar: 'text-idle' },
  unlimited: { icon: 'infinity', badge: 'bg-idle-wash text-idle-ink', bar: 'text-idle' },
}

/** By icon and words as well as by colour. */
export function StateBadge({ state }: { state: State }) {
  const { t } = useWords()
  return <Badge look={STATES[state].badge} icon={STATES[state].icon} label={t(`states.${state}`)} />
}

export type Tone = 'good' | 'warn' | 'bad' | 'idle'

const TONES: Record<Tone, string> = {
  good: STATES.ok.badge,
  warn: STATES.near.badge,
  bad: STATES.exhausted.badge,
  idle: STATES.paused.badge,
}

export function ToneBadge({ tone, icon, label }: { tone: Tone; icon: IconName; label: string }) {
  return <Badge look={TONES[tone]} icon={icon} label={label} />
}

function Badge({ look, icon, label }: { look: string; icon: IconName; label: string }) {
  return (
    <span
      className={`inline-flex items-center gap-1 rounded-full px-2 py-0.5 text-xs font-medium whitespace-nowrap ${look}`}
    >
      <Icon name={icon} />
      {label}
    </span>
  )
}

interface MeterProps {
  label: string
  /** What it is called aloud, where the label alone does not say what it is of. */
  name?: string
  meter: MeterName
  amount: number | string | null
  used: number | string
  held: number | string
  /** Instead of the state that the share tells: an allocation may be paused. */
  paused?: boolean
  /** One line instead of three. */
  small?: boolean
}

export function Meter({ label, name = label, meter, amount, used, held, paused, small = false }: MeterProps) {
  const { t, locale } = useWords()
  // The label says of what: `tokens` need not stand behind each number.
  const shown = (value: number | string, round?: 'down') =>
    meter === 'usd' ? formatUsd(String(value), locale, round) : formatCount(value, locale)
  const parts = partsOf({ meter, amount, used, held })
  const state = paused ? 'paused' : parts.state
  const some = Number(held) > 0
  const left = parts.remaining === null ? null : shown(parts.remaining, 'down')
  const spoken = [
    t('meter.used', { amount: shown(used) }),
    some && t('meter.held', { amount: shown(held) }),
    left === null ? t('states.unlimited') : t('meter.left', { amount: left }),
  ].filter(Boolean)
  const color = STATES[state].bar
  return (
    <div className="flex min-w-0 flex-col gap-1.5">
      <div className="flex flex-wrap items-baseline justify-between gap-x-3">
        <span className={small ? 'text-xs text-soft' : 'text-soft'}>{label}</span>
        <span className={`ml-auto text-right tabular-nums ${small ? 'text-xs' : ''}`}>
          <strong className={small ? 'font-semibold' : 'text-lg font-semibold'}>
            {shown(used)}
          </strong>
          <span className="text-soft">
            {' / '}
            {amount === null ? t('meter.noCap') : shown(amount)}
          </span>
        </span>
      </div>
      {amount !== null && (
        <div
          role="meter"
          aria-label={name}
          aria-valuemin={0}
          aria-valuemax={100}
          aria-valuenow={Math.min(100, Math.round((parts.used + parts.held) * 100))}
          aria-valuetext={spoken.join(', ')}
          className={`flex w-full overflow-hidden rounded-full bg-sunk ring-1 ring-line ring-inset ${small ? 'h-1.5' : 'h-2.5'} ${color}`}
        >
          {parts.used > 0 && (
            <span className="min-w-0.5 bg-current" style={{ width: `${parts.used * 100}%` }} />
          )}
          {parts.held > 0 && (
            <span className="stripes min-w-0.5" style={{ width: `${parts.held * 100}%` }} />
          )}
        </div>
      )}
      {!small && (some || amount !== null) && (
        <ul className="flex flex-wrap gap-x-4 gap-y-0.5 text-xs text-soft" aria-hidden="true">
          {parts.share !== null && (
            <li className="flex items-center gap-1.5">
              <i className={`size-2 rounded-full bg-current ${color}`} />
              {t('meter.usedShare', { share: formatPercent(parts.share, locale) })}
            </li>
          )}
          <li className="flex items-center gap-1.5">
            <i className={`stripes size-2 rounded-full ${color}`} />
            {t('meter.held', { amount: shown(held) })}
          </li>
          {left !== null && (
            <li className="flex items-center gap-1.5">
              <i className="size-2 rounded-full bg-sunk ring-1 ring-edge ring-inset" />
              {t('meter.left', { amount: left })}
            </li>
          )}
        </ul>
      )}
    </div>
  )
}
