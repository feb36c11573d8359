/** One call, whole. */
import type { Call } from '@/api/queries'
import { useWords } from '@/i18n'
import { formatUsdExact } from '@/lib/money'

import { Count, When } from './format'
import { OutcomeBadge, Shortfall } from './outcome'
import { useUnits } from './units'

export function CallDetails({ call, names }: { call: Call; names: ReadonlyMap<string, string> }) {
  const { t, locale } = useWords()
  const units = useUnits()
  const took = (Date.parse(call.finished_at) - Date.parse(call.started_at)) / 1000
  const facts: [string, React.ReactNode][] = [
    [t('calls.outcome'), <OutcomeBadge key="outcome" outcome={call.outcome} />],
    [t('calls.time'), <When key="time" at={call.started_at} utc />],
    [t('calls.took'), t('calls.seconds', { count: took, shown: took.toFixed(took < 10 ? 2 : 0) })],
    [t('calls.status'), String(call.status_code)],
    ...(call.close_reason ? ([[t('calls.closed'), <code key="closed">{call.close_reason}</code>]] as [string, React.ReactNode][]) : []),
    [t('calls.allocation'), names.get(call.allocation_id ?? '') ?? '–'],
    [t('calls.key'), names.get(call.key_id) ?? '–'],
    [t('calls.tokens'), <Count key="tokens" value={call.tokens} />],
    [t('usage.units'), units(call.usage) || '–'],
    [
      t('calls.cost'),
      call.cost_usd === null ? t('common.unpriced') : formatUsdExact(call.cost_usd, locale),
    ],
    ...(call.estimated ? ([[t('calls.estimated'), t('calls.estimatedHint')]] as [string, React.ReactNode][]) : []),
    [t('calls.id'), <code key="id">{call.id}</code>],
    [t('calls.requestId'), <code key="request">{call.request_id}</code>],
  ]
  return (
    <div className="flex flex-col gap-4">
      {call.limit && <Shortfall limit={call.limit} name={names.get(call.limit.owner_id)} />}
      {call.error_message && (
        <p lang="en" className="rounded-lg bg-sunk px-3 py-2 font-mono text-xs">
          {call.error_message}
        </p>
      )}
      <dl className="grid grid-cols-[auto_1fr] gap-x-5 gap-y-2 [&_code]:font-mono [&_code]:text-xs">
        {facts.map(([name, value]) => (
          <div key={name} className="contents">
            <dt className="text-soft">{name}</dt>
            <dd className="min-w-0">{value}</dd>
          </div>
        ))}
      </dl>
    </div>
  )
}
