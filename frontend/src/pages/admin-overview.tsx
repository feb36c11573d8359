/** Overview: what an admin looks at first; each figure leads to the rows behind it. */
import { Link } from '@tanstack/react-router'
import { useQuery } from '@tanstack/react-query'
import type { ReactNode } from 'react'

import { type Overview, overviewQuery } from '@/api/admin-spend'
import { useWords } from '@/i18n'
import { formatCount, formatPercent } from '@/lib/money'
import { LinkButton, TextLink } from '@/ui/button'
import { Count, Money, When } from '@/ui/format'
import { Icon, type IconName } from '@/ui/icons'
import { Meter, StateBadge, type Tone, ToneBadge } from '@/ui/meter'
import { Answered, Card, Empty, Page } from '@/ui/page'
import { DataTable } from '@/ui/table'

export default function AdminOverview() {
  const { t } = useWords()
  const overview = useQuery(overviewQuery)
  return (
    <Page title={t('nav.adminOverview')} about={t('adminOverview.about')}>
      <Answered of={overview}>
        {(now) => (
          <>
            <Attention now={now} />
            <Figures now={now} />
            <div className="grid gap-5 xl:grid-cols-2">
              <Tight now={now} />
              <Spenders now={now} />
              <Providers now={now} />
              <Unpriced now={now} />
            </div>
          </>
        )}
      </Answered>
    </Page>
  )
}

/** What somebody has to do something about; nothing where all is well. */
function Attention({ now }: { now: Overview }) {
  const { t } = useWords()
  const { ledger } = now
  const wanted: { key: string; tone: Tone; icon: IconName; text: string; to: string; search?: Record<string, string> }[] = []
  if (now.providers.length === 0)
    wanted.push({ key: 'setup', tone: 'warn', icon: 'wand', text: t('wizard.start'), to: '/admin/setup' })
  if (now.open_requests > 0)
    wanted.push({ key: 'requests', tone: 'warn', icon: 'inbox', text: t('adminOverview.requests', { count: now.open_requests }), to: '/admin/requests' })
  if (now.exhausted_allocations > 0)
    wanted.push({ key: 'exhausted', tone: 'bad', icon: 'stop', text: t('adminOverview.exhausted', { count: now.exhausted_allocations }), to: '/admin/allocations', search: { state: 'exhausted' } })
  if (now.dead_deliveries > 0)
    wanted.push({ key: 'dead', tone: 'bad', icon: 'bell', text: t('adminOverview.dead', { count: now.dead_deliveries }), to: '/admin/alerts' })
  const down = now.providers.filter((one) => healthOf(one) === 'bad')
  if (down.length > 0)
    wanted.push({ key: 'providers', tone: 'bad', icon: 'warning', text: t('adminOverview.failing', { count: down.length, names: down.map((one) => one.name).join(', ') }), to: '/admin/models' })
  const troubles = [
    !ledger.available && t('adminOverview.ledgerAway'),
    ledger.spooled_settlements > 0 && t('adminOverview.spooled', { count: ledger.spooled_settlements }),
    ledger.overdue_holds > 0 && t('adminOverview.overdue', { count: ledger.overdue_holds }),
  ].filter((one) => one !== false)
  if (wanted.length === 0 && troubles.length === 0) {
    return (
      <p className="flex items-center gap-2 rounded-xl bg-accent-wash px-4 py-2.5 font-medium text-accent-strong">
        <Icon name="check" className="size-5" />
        {t('adminOverview.well')}
      </p>
    )
  }
  return (
    <ul aria-label={t('adminOverview.attention')} className="grid gap-2 sm:grid-cols-2 xl:grid-cols-3">
      {troubles.map((text) => (
        <li key={text} className={`flex items-center gap-2.5 rounded-xl px-4 py-2.5 font-medium ${LOOKS.bad}`}>
          <Icon name="warning" className="size-5" />
          {text}
        </li>
      ))}
      {wanted.map(({ key, tone, icon, text, to, search }) => (
        <li key={key} className="flex">
          <Link
            to={to}
            search={(search ?? {}) as never}
            className={`flex w-full items-center gap-2.5 rounded-xl px-4 py-2.5 font-medium no-underline hover:underline ${LOOKS[tone]}`}
          >
            <Icon name={icon} className="size-5" />
            <span className="min-w-0 flex-1">{text}</span>
            <Icon name="right" />
          </Link>
        </li>
      ))}
    </ul>
  )
}

const LOOKS: Record<Tone, string> = {
  good: 'bg-accent-wash text-accent-strong',
  warn: 'bg-near-wash text-near-ink',
  bad: 'bg-bad-wash text-bad-ink',
  idle: 'bg-idle-wash text-idle-ink',
}

function Figures({ now }: { now: Overview }) {
  const { t, locale } = useWords()
  const refusals = (of: Overview['today']) =>
    of.calls === 0
      ? t('adminOverview.noCalls')
      : t('adminOverview.ofCalls', {
          count: of.calls,
          shown: formatCount(of.calls, locale),
          share: formatPercent(of.refused_calls / of.calls, locale),
        })
  return (
    <ul aria-label={t('adminOverview.figures')} className="grid grid-cols-2 gap-3 lg:grid-cols-4">
      <Figure
        label={t('adminOverview.month')}
        to="/admin/allocations"
        search={{ sort: 'spend' }}
        below={t('adminOverview.monthBelow')}
      >
        <Money usd={now.spend_this_month_usd} />
      </Figure>
      <Figure label={t('adminOverview.today')} to="/admin/calls" search={{ when: 'day' }} below={t('adminOverview.todayBelow')}>
        <Money usd={now.spend_today_usd} />
      </Figure>
      <Figure
        label={t('adminOverview.refusedToday')}
        to="/admin/calls"
        search={{ when: 'day', refused: 'yes' }}
        below={refusals(now.today)}
      >
        <Count value={now.today.refused_calls} />
      </Figure>
      <Figure
        label={t('adminOverview.refusedHour')}
        to="/admin/calls"
        search={{ when: 'hour', refused: 'yes' }}
        below={refusals(now.last_hour)}
      >
        <Count value={now.last_hour.refused_calls} />
      </Figure>
      <Figure
        label={t('adminOverview.near')}
        to="/admin/allocations"
        search={{ state: 'near' }}
        below={t('adminOverview.nearBelow')}
      >
        <Count value={now.near_allocations} />
      </Figure>
      <Figure
        label={t('adminOverview.critical')}
        to="/admin/allocations"
        search={{ state: 'critical' }}
        below={t('adminOverview.criticalBelow')}
      >
        <Count value={now.critical_allocations} />
      </Figure>
      <Figure label={t('adminOverview.live')} to="/admin/sessions" below={t('adminOverview.liveBelow')}>
        <Count value={now.live_sessions} />
      </Figure>
      <Figure
        label={t('adminOverview.holds')}
        to="/admin/allocations"
        search={{ sort: 'tight' }}
        below={t('adminOverview.holdsBelow')}
      >
        <Count value={now.ledger.open_holds} />
      </Figure>
    </ul>
  )
}

function Figure({
  label,
  below,
  to,
  search = {},
  children,
}: {
  label: string
  below: string
  to: string
  search?: Record<string, string>
  children: ReactNode
}) {
  return (
    <li className="flex min-w-0">
      <Link
        to={to}
        search={search as never}
        className="flex w-full min-w-0 flex-col rounded-xl border border-line bg-card px-4 py-3 no-underline shadow-card hover:border-edge"
      >
        <span className="text-xs text-soft">{label}</span>
        <strong className="text-xl font-semibold tabular-nums">{children}</strong>
        <span className="mt-auto text-xs text-soft">{below}</span>
      </Link>
    </li>
  )
}

function Tight({ now }: { now: Overview }) {
  const { t } = useWords()
  return (
    <Card title={t('adminOverview.tight')} flush actions={<TextLink to="/admin/allocations" search={{ sort: 'tight' }}>{t('adminOverview.all')}</TextLink>}>
      {now.tight.length === 0 ? (
        <Empty icon="check" title={t('adminOverview.noTight')}>
          {t('adminOverview.noTightHint')}
        </Empty>
      ) : (
        <ul className="divide-y divide-line">
          {now.tight.slice(0, TIGHT_SHOWN).map((one) => (
            <li key={one.id} className="flex flex-col gap-2 px-4 py-3">
              <div className="flex flex-wrap items-start justify-between gap-x-3 gap-y-1">
                <span className="min-w-0">
                  <TextLink to="/admin/allocations" search={{ id: one.id }}>
                    {one.name}
                  </TextLink>
                  <span className="block text-xs text-soft">{one.member_email}</span>
                </span>
                <StateBadge state={one.state} />
              </div>
              <div className="flex gap-x-6 gap-y-2 max-sm:flex-col [&>*]:flex-1">
                {one.effective_cost_usd_per_month !== null && (
                  <Meter small label={t('meters.usd')} name={`${one.name}: ${t('meters.usd')}`} meter="usd" amount={one.effective_cost_usd_per_month} used={one.cost_used_this_month} held={one.cost_held} />
                )}
                {one.effective_tokens_per_month !== null && (
                  <Meter small label={t('meters.tokens')} name={`${one.name}: ${t('meters.tokens')}`} meter="tokens" amount={one.effective_tokens_per_month} used={one.tokens_used_this_month} held={one.tokens_held} />
                )}
              </div>
            </li>
          ))}
        </ul>
      )}
    </Card>
  )
}

const TIGHT_SHOWN = 8

function Spenders({ now }: { now: Overview }) {
  const { t } = useWords()
  const most = Math.max(...now.top_spenders.map((one) => Number(one.cost_used_this_month)), 0)
  return (
    <Card title={t('adminOverview.spenders')} flush actions={<TextLink to="/admin/allocations" search={{ sort: 'spend' }}>{t('adminOverview.all')}</TextLink>}>
      {now.top_spenders.length === 0 ? (
        <Empty icon="chart" title={t('adminOverview.noSpenders')}>
          {t('adminOverview.noSpendersHint')}
        </Empty>
      ) : (
        <DataTable
          caption={t('adminOverview.spenders')}
          rows={now.top_spenders}
          id={(row) => row.id}
          columns={[
            {
              name: 'name',
              head: t('adminAllocations.allocation'),
              title: true,
              cell: (row) => (
                <>
                  <TextLink to="/admin/calls" search={{ allocation_id: row.id, when: 'month' }}>
                    {row.name}
                  </TextLink>
                  <span className="block text-xs font-normal text-soft">{row.member_email}</span>
                </>
              ),
            },
            {
              name: 'spend',
              head: t('adminOverview.spent'),
              end: true,
              cell: (row) => (
                <span className="flex flex-col items-end gap-1">
                  <Money usd={row.cost_used_this_month} />
                  <span aria-hidden="true" className="block h-1.5 w-28 overflow-hidden rounded-full bg-sunk max-md:hidden">
                    <span
                      className="block h-full rounded-full bg-ok"
                      style={{ width: `${most ? (Number(row.cost_used_this_month) / most) * 100 : 0}%` }}
                    />
                  </span>
                </span>
              ),
            },
            {
              name: 'tokens',
              head: t('meters.tokens'),
              end: true,
              cell: (row) => <Count value={row.tokens_used_this_month} />,
            },
          ]}
        />
      )}
    </Card>
  )
}

type Provider = Overview['providers'][number]

/** Of the last 15 minutes: most calls failed, some did, none did, or nobody called. */
function healthOf({ calls, upstream_errors }: Provider): Tone {
  if (calls === 0) return 'idle'
  if (upstream_errors === 0) return 'good'
  return upstream_errors * 2 >= calls ? 'bad' : 'warn'
}

const HEALTH: Record<Tone, IconName> = { good: 'check', warn: 'warning', bad: 'stop', idle: 'pause' }

function Providers({ now }: { now: Overview }) {
  const { t } = useWords()
  return (
    <Card title={t('adminOverview.providers')} flush>
      {now.providers.length === 0 ? (
        <Empty
          icon="model"
          title={t('adminOverview.noProviders')}
          actions={<LinkButton look="main" to="/admin/models">{t('adminOverview.toProviders')}</LinkButton>}
        >
          {t('adminOverview.noProvidersHint')}
        </Empty>
      ) : (
        <DataTable
          caption={t('adminOverview.providers')}
          rows={now.providers}
          id={(row) => row.id}
          columns={[
            {
              name: 'name',
              head: t('adminOverview.provider'),
              title: true,
              cell: (row) => <TextLink to="/admin/models">{row.name}</TextLink>,
            },
            {
              name: 'health',
              head: t('adminOverview.health'),
              cell: (row) => {
                const tone = healthOf(row)
                return <ToneBadge tone={tone} icon={HEALTH[tone]} label={t(`adminOverview.healths.${tone}`)} />
              },
            },
            {
              name: 'errors',
              head: t('adminOverview.errors'),
              end: true,
              cell: (row) => (
                <TextLink to="/admin/calls" search={{ when: 'hour', outcome: 'upstream_error' }}>
                  {t('adminOverview.errorsOf', { errors: row.upstream_errors, calls: row.calls })}
                </TextLink>
              ),
            },
            {
              name: 'last',
              head: t('adminOverview.lastSuccess'),
              cell: (row) =>
                row.last_success_at ? (
                  <When at={row.last_success_at} relative />
                ) : (
                  <span className="text-soft">{t('adminOverview.notToday')}</span>
                ),
            },
          ]}
        />
      )}
    </Card>
  )
}

function Unpriced({ now }: { now: Overview }) {
  const { t } = useWords()
  return (
    <Card title={t('adminOverview.unpriced')} flush>
      {now.unpriced_models.length === 0 ? (
        <Empty icon="tag" title={t('adminOverview.noUnpriced')}>
          {t('adminOverview.noUnpricedHint')}
        </Empty>
      ) : (
        <DataTable
          caption={t('adminOverview.unpriced')}
          rows={now.unpriced_models}
          id={(row) => row.model}
          columns={[
            {
              name: 'model',
              head: t('adminOverview.model'),
              title: true,
              cell: (row) => <span className="font-mono text-xs">{row.model}</span>,
            },
            {
              name: 'calls',
              head: t('adminOverview.callsMonth'),
              end: true,
              cell: (row) => (
                <TextLink to="/admin/calls" search={{ model: row.model, when: 'month' }}>
                  <Count value={row.calls} />
                </TextLink>
              ),
            },
            {
              name: 'price',
              head: '',
              actions: true,
              end: true,
              cell: (row) => (
                <LinkButton icon="tag" to="/admin/prices" search={{ model: row.model }}>
                  {t('adminOverview.price')}
                </LinkButton>
              ),
            },
          ]}
        />
      )}
    </Card>
  )
}
