/** Allocations: what one may use, what is left of it, and asking for more. */
import { useMutation, useQuery } from '@tanstack/react-query'
import { Suspense, lazy, useState } from 'react'

import { api, ok } from '@/api/client'
import {
  type Request,
  type Standing,
  myAllocationsQuery,
  myRequestsQuery,
  useRefresh,
} from '@/api/queries'
import { useWords } from '@/i18n'
import { formatRelative } from '@/lib/time'
import { Button, LinkButton } from '@/ui/button'
import { Confirm, Dialog } from '@/ui/dialog'
import { When, useAmount } from '@/ui/format'
import { Icon, type IconName } from '@/ui/icons'
import { useLimitName } from '@/ui/limit-name'
import { Meter, StateBadge, type Tone } from '@/ui/meter'
import { Answered, Card, Empty, Loading, Page } from '@/ui/page'
import { toast } from '@/ui/toast'

import { Projection } from './projection'

// Forms and their checks are not part of the first load.
const AskForm = lazy(() => import('./ask'))

export default function Allocations() {
  const { t } = useWords()
  const allocations = useQuery(myAllocationsQuery)
  const requests = useQuery(myRequestsQuery)
  return (
    <Page title={t('nav.allocations')} about={t('allocations.about')}>
      <Answered of={allocations}>
        {(items) =>
          items.length === 0 ? (
            <Card>
              <Empty icon="wallet" title={t('allocations.none')}>
                {t('allocations.noneHint')}
              </Empty>
            </Card>
          ) : (
            <ul className={`grid gap-4 ${items.length > 1 ? 'xl:grid-cols-2' : 'max-w-3xl'}`}>
              {items.map((one) => (
                <li key={one.id} className="flex min-w-0">
                  <Allocation
                    standing={one}
                    requests={requests.data?.filter((asked) => asked.allocation_id === one.id) ?? []}
                  />
                </li>
              ))}
            </ul>
          )
        }
      </Answered>
    </Page>
  )
}

function Allocation({ standing, requests }: { standing: Standing; requests: Request[] }) {
  const { t } = useWords()
  const [asking, setAsking] = useState(false)
  const paused = standing.status !== 'active'
  const open = requests.find((one) => one.status === 'open')
  const capped =
    standing.quota_cost_usd_per_month !== null || standing.quota_tokens_per_month !== null
  return (
    <article
      aria-label={standing.name}
      data-state={standing.state}
      className="flex w-full min-w-0 flex-col overflow-hidden rounded-xl border border-line bg-card shadow-card"
    >
      <header className="flex flex-wrap items-start justify-between gap-x-3 gap-y-1 px-4 pt-3.5">
        <h2 className="min-w-0 text-base font-semibold">{standing.name}</h2>
        <StateBadge state={standing.state} />
        <Models slugs={standing.models} />
      </header>
      <div className="flex flex-1 flex-col gap-4 px-4 py-4">
        <Warning standing={standing} />
        <Meter
          label={t('allocations.cost')}
          meter="usd"
          amount={standing.effective_cost_usd_per_month}
          used={standing.cost_used_this_month}
          held={standing.cost_held}
          paused={paused}
        />
        <Meter
          label={t('allocations.tokens')}
          meter="tokens"
          amount={standing.effective_tokens_per_month}
          used={standing.tokens_used_this_month}
          held={standing.tokens_held}
          paused={paused}
        />
        <Facts standing={standing} />
        {requests[0] && <Asked request={open ?? requests[0]} />}
      </div>
      <footer className="flex flex-wrap gap-2 border-t border-line px-4 py-3">
        {capped && !open && (
          <Button
            icon="up"
            look={standing.state === 'ok' || paused ? 'plain' : 'main'}
            onClick={() => setAsking(true)}
          >
            {t('ask.action')}
          </Button>
        )}
        <LinkButton icon="list" to="/calls" search={{ allocation_id: standing.id }}>
          {t('nav.calls')}
        </LinkButton>
        <LinkButton icon="chart" to="/usage" search={{ allocation_id: standing.id }}>
          {t('nav.usage')}
        </LinkButton>
      </footer>
      <Dialog
        open={asking}
        onClose={() => setAsking(false)}
        title={t('ask.title', { name: standing.name })}
        about={t('ask.about')}
      >
        <Suspense fallback={<Loading />}>
          <AskForm standing={standing} onClose={() => setAsking(false)} />
        </Suspense>
      </Dialog>
    </article>
  )
}

const MODELS_SHOWN = 4

function Models({ slugs }: { slugs: string[] }) {
  const { t } = useWords()
  const [all, setAll] = useState(false)
  const shown = all ? slugs : slugs.slice(0, MODELS_SHOWN)
  return (
    <ul aria-label={t('allocations.models')} className="flex w-full flex-wrap gap-1">
      {shown.map((slug) => (
        <li key={slug} className="rounded bg-sunk px-1.5 py-0.5 font-mono text-xs">
          {slug}
        </li>
      ))}
      {shown.length < slugs.length && (
        <li>
          <button
            type="button"
            className="rounded px-1.5 py-0.5 text-xs text-accent underline underline-offset-2"
            onClick={() => setAll(true)}
          >
            {t('allocations.moreModels', { count: slugs.length - shown.length })}
          </button>
        </li>
      )}
    </ul>
  )
}

const NOTES: Record<Tone, string> = {
  good: 'bg-accent-wash text-accent-strong',
  warn: 'bg-near-wash text-near-ink',
  bad: 'bg-bad-wash text-bad-ink',
  idle: 'bg-idle-wash text-idle-ink',
}

function Note({ tone, icon, children }: { tone: Tone; icon: IconName; children: React.ReactNode }) {
  return (
    <div className={`flex items-start gap-2 rounded-lg px-3 py-2 ${NOTES[tone]}`}>
      <Icon name={icon} className="mt-1" />
      <div className="min-w-0 flex-1">{children}</div>
    </div>
  )
}

/** What an allocation's state means for the next call, and what can be done. */
function Warning({ standing }: { standing: Standing }) {
  const { t } = useWords()
  const shown = useAmount()
  const { state, status, binds } = standing
  if (status !== 'active') {
    return (
      <Note tone="idle" icon="pause">
        {t(`allocations.inactive.${status}`)}
      </Note>
    )
  }
  if (state === 'ok' || state === 'paused') return null
  const left = binds ? shown(binds.meter, binds.remaining, 'down') : ''
  return (
    <Note
      tone={state === 'exhausted' ? 'bad' : 'warn'}
      icon={state === 'exhausted' ? 'stop' : 'warning'}
    >
      {state === 'exhausted' ? t('allocations.exhausted') : t('allocations.near', { left })}
    </Note>
  )
}

function Facts({ standing }: { standing: Standing }) {
  const { t, locale } = useWords()
  const shown = useAmount()
  const limitName = useLimitName()
  const { binds } = standing
  return (
    <dl className="grid grid-cols-[auto_1fr] gap-x-4 gap-y-1.5 text-sm max-sm:grid-cols-1 max-sm:gap-y-0 max-sm:[&>dd]:mb-1.5 [&>dt]:text-soft">
      {binds && (
        <>
          <dt>{t('allocations.binds')}</dt>
          <dd>
            {limitName(binds, binds.owner === 'allocation' ? undefined : binds.owner_name)}
            <span className="text-soft"> · </span>
            {t('allocations.bindsLeft', {
              left: shown(binds.meter, binds.remaining, 'down'),
              amount: shown(binds.meter, binds.amount),
            })}
            {binds.owner !== 'allocation' && (
              <div className="mt-1.5 max-w-80">
                <Meter small label={binds.owner_name} {...binds} />
              </div>
            )}
          </dd>
        </>
      )}
      <Projection standing={standing} />
      {standing.resets_at && (
        <>
          <dt>{t('allocations.resets')}</dt>
          <dd>
            <When at={standing.resets_at} utc />
            <span className="text-soft">
              {' · '}
              {formatRelative(new Date(standing.resets_at), locale)}
            </span>
          </dd>
        </>
      )}
      {standing.top_ups.map((one) => (
        <div key={one.id} className="contents">
          <dt>{t('allocations.topUp')}</dt>
          <dd>
            <strong className="font-semibold">+{shown(one.meter, one.amount)}</strong>{' '}
            {t('allocations.until')} <When at={one.expires_at} />
            <span className="text-soft"> · {one.reason}</span>
          </dd>
        </div>
      ))}
      {standing.unpriced_calls_this_month > 0 && (
        <>
          <dt>{t('allocations.unpriced')}</dt>
          <dd>
            {t('allocations.unpricedCalls', { count: standing.unpriced_calls_this_month })}{' '}
            <span className="text-soft">{t('common.unpricedHint')}</span>
          </dd>
        </>
      )}
    </dl>
  )
}

const DECIDED_SHOWN_MS = 7 * 86_400_000

/** The open request, or what became of the last one. */
function Asked({ request }: { request: Request }) {
  const { t } = useWords()
  const shown = useAmount()
  const refresh = useRefresh()
  const [withdrawing, setWithdrawing] = useState(false)
  const withdraw = useMutation({
    mutationFn: () =>
      ok(api.DELETE('/api/me/requests/{id}', { params: { path: { id: request.id } } })),
    onSuccess: () => {
      toast(t('ask.withdrawn'))
      return refresh(['me', 'requests'])
    },
  })
  const more = `+${shown(request.meter, request.amount)}`
  if (request.status === 'withdrawn') return null
  if (request.status !== 'open') {
    const decided = new Date(request.decided_at ?? request.created_at).getTime()
    if (Date.now() - decided > DECIDED_SHOWN_MS) return null
    const given = request.status === 'approved'
    return (
      <Note tone={given ? 'good' : 'idle'} icon={given ? 'check' : 'close'}>
        {given ? t('ask.approved', { more }) : t('ask.declined', { more })}
        {request.decision_reason && <p className="text-xs">{request.decision_reason}</p>}
      </Note>
    )
  }
  return (
    <Note tone="idle" icon="clock">
      <div className="flex flex-wrap items-center justify-between gap-2">
        <div className="min-w-0">
          <p className="font-medium">{t('ask.open', { more })}</p>
          <p className="text-xs">
            {request.reason} · <When at={request.created_at} relative />
          </p>
        </div>
        <Button onClick={() => setWithdrawing(true)}>{t('ask.withdraw')}</Button>
      </div>
      <Confirm
        open={withdrawing}
        onClose={() => setWithdrawing(false)}
        title={t('ask.withdrawTitle')}
        action={t('ask.withdraw')}
        onConfirm={() => withdraw.mutateAsync()}
      >
        <p>{t('ask.withdrawEffect', { more })}</p>
      </Confirm>
    </Note>
  )
}
