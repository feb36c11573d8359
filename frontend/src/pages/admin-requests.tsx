/** Requests: what members ask for, the open ones first, and what became of the others. */
import { useInfiniteQuery, useMutation, useQuery } from '@tanstack/react-query'
import { type FormEvent, useState } from 'react'

import {
  type AllocationRow,
  type RequestRow,
  SPEND,
  allocationsQuery,
  membersQuery,
  openRequestsQuery,
  requestsQuery,
} from '@/api/admin-spend'
import { api, ok } from '@/api/client'
import { useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { fieldError } from '@/i18n/errors'
import { readCap } from '@/lib/caps'
import { isoDate } from '@/lib/time'
import { useSession } from '@/shell/gate'
import { Button, TextLink } from '@/ui/button'
import { Dialog, DialogActions } from '@/ui/dialog'
import { SelectField, TextArea, TextField } from '@/ui/field'
import { More } from '@/ui/filters'
import { When, useAmount } from '@/ui/format'
import { Meter, StateBadge, type Tone, ToneBadge } from '@/ui/meter'
import { Answered, Card, Empty, Page, Problem } from '@/ui/page'
import { DataTable } from '@/ui/table'
import { toast } from '@/ui/toast'
import type { IconName } from '@/ui/icons'

type Deciding = { request: RequestRow; how: 'approve' | 'decline' }

export default function AdminRequests() {
  const { t } = useWords()
  const open = useQuery(openRequestsQuery)
  const [deciding, setDeciding] = useState<Deciding | null>(null)
  return (
    <Page title={t('nav.adminRequests')} about={t('adminRequests.about')}>
      <Answered of={open}>
        {(requests) =>
          requests.length === 0 ? (
            <Card>
              <Empty icon="inbox" title={t('adminRequests.none')}>
                {t('adminRequests.noneHint')}
              </Empty>
            </Card>
          ) : (
            <ul aria-label={t('adminRequests.open')} className="grid gap-4 xl:grid-cols-2">
              {[...requests].reverse().map((request) => (
                <li key={request.id} className="flex min-w-0">
                  <Open request={request} decide={(how) => setDeciding({ request, how })} />
                </li>
              ))}
            </ul>
          )
        }
      </Answered>
      <History />
      {deciding?.how === 'approve' && (
        <ApproveDialog request={deciding.request} onClose={() => setDeciding(null)} />
      )}
      {deciding?.how === 'decline' && (
        <DeclineDialog request={deciding.request} onClose={() => setDeciding(null)} />
      )}
    </Page>
  )
}

/** Who asked, and for which allocation: what the request names by ids. */
function useBehind() {
  const members = useQuery(membersQuery)
  const allocations = useQuery(allocationsQuery)
  return (request: RequestRow) => ({
    member: members.data?.find((one) => one.id === request.member_id),
    allocation: allocations.data?.find((one) => one.id === request.allocation_id),
  })
}

function useUntil() {
  const { t } = useWords()
  return (expires: string) =>
    expires === 'day' || expires === 'period' ? (
      t(`ask.untils.${expires}`)
    ) : /^\d{4}-\d\d-\d\d$/.test(expires) ? (
      t('adminRequests.untilDate', { date: expires })
    ) : (
      <When at={expires} />
    )
}

function Open({
  request,
  decide,
}: {
  request: RequestRow
  decide: (how: Deciding['how']) => void
}) {
  const { t } = useWords()
  const shown = useAmount()
  const until = useUntil()
  const admin = useSession().member.role === 'admin'
  const { member, allocation } = useBehind()(request)
  const more = `+${shown(request.meter, request.amount)}`
  return (
    <article
      aria-label={t('adminRequests.of', { who: member?.display_name ?? '…', more })}
      className="flex w-full min-w-0 flex-col gap-3 rounded-xl border border-line bg-card p-4 shadow-card"
    >
      <header className="flex flex-wrap items-start justify-between gap-x-4 gap-y-1">
        <div className="min-w-0">
          <h2 className="font-semibold">{member?.display_name ?? '…'}</h2>
          <p className="text-xs text-soft">{member?.email}</p>
        </div>
        <p className="text-right">
          <strong className="text-lg font-semibold tabular-nums">{more}</strong>
          <span className="block text-xs text-soft">
            {t('ask.until')} {until(request.expires)}
          </span>
        </p>
      </header>
      <blockquote className="rounded-lg border-l-4 border-edge bg-sunk px-3 py-2">
        {request.reason}
      </blockquote>
      {allocation && <Stands allocation={allocation} meter={request.meter} />}
      <footer className="mt-auto flex flex-wrap items-center justify-between gap-2">
        <span className="text-xs text-soft">
          {t('adminRequests.asked')} <When at={request.created_at} relative />
        </span>
        {admin && (
          <span className="flex flex-wrap gap-2">
            <Button onClick={() => decide('decline')}>{t('adminRequests.decline')}</Button>
            <Button look="main" icon="check" onClick={() => decide('approve')}>
              {t('adminRequests.approve')}
            </Button>
          </span>
        )}
      </footer>
    </article>
  )
}

/** How the allocation stands that a request is for. */
function Stands({ allocation, meter }: { allocation: AllocationRow; meter: 'usd' | 'tokens' }) {
  return (
    <div className="flex flex-col gap-2">
      <div className="flex flex-wrap items-center justify-between gap-2">
        <TextLink to="/admin/allocations" search={{ id: allocation.id }}>
          {allocation.name}
        </TextLink>
        <StateBadge state={allocation.state} />
      </div>
      <Standing allocation={allocation} meter={meter} />
    </div>
  )
}

function Standing({ allocation, meter }: { allocation: AllocationRow; meter: 'usd' | 'tokens' }) {
  const { t } = useWords()
  return meter === 'usd' ? (
    <Meter
      label={t('allocations.cost')}
      meter="usd"
      amount={allocation.effective_cost_usd_per_month}
      used={allocation.cost_used_this_month}
      held={allocation.cost_held}
    />
  ) : (
    <Meter
      label={t('allocations.tokens')}
      meter="tokens"
      amount={allocation.effective_tokens_per_month}
      used={allocation.tokens_used_this_month}
      held={allocation.tokens_held}
    />
  )
}

const UNTILS = ['period', 'day', 'date'] as const

function ApproveDialog({ request, onClose }: { request: RequestRow; onClose: () => void }) {
  const { t } = useWords()
  const shown = useAmount()
  const refresh = useRefresh()
  const asked = useUntil()
  const { member, allocation } = useBehind()(request)
  const named = (UNTILS as readonly string[]).includes(request.expires)
  const isDate = /^\d{4}-\d\d-\d\d$/.test(request.expires)
  const [amount, setAmount] = useState(String(request.amount))
  const [until, setUntil] = useState(named ? request.expires : isDate ? 'date' : 'asked')
  const [date, setDate] = useState(isDate ? request.expires : '')
  const [reason, setReason] = useState('')
  const [tried, setTried] = useState(false)
  const read = readCap(request.meter, amount)
  const amountIs = read !== null && read !== undefined && Number(read) > 0
  const dateIs = until !== 'date' || date !== ''
  const expires = until === 'date' ? date : until === 'asked' ? request.expires : until
  const approve = useMutation({
    mutationFn: () =>
      ok(
        api.POST('/api/admin/requests/{id}/approve', {
          params: { path: { id: request.id } },
          body: {
            amount: String(read) === String(request.amount) ? null : String(read),
            expires: expires === request.expires ? null : expires,
            reason: reason.trim() || null,
          },
        }),
      ),
    onSuccess: async () => {
      await refresh(SPEND)
      toast(t('adminRequests.approved', { more: `+${shown(request.meter, String(read))}` }))
      onClose()
    },
  })
  const submit = (event: FormEvent) => {
    event.preventDefault()
    setTried(true)
    if (amountIs && dateIs) approve.mutate()
  }
  return (
    <Dialog
      open
      onClose={onClose}
      title={t('adminRequests.approveTitle', { who: member?.display_name ?? '' })}
      about={t('adminRequests.approveAbout')}
    >
      <form onSubmit={submit} className="flex flex-col gap-4" noValidate>
        {approve.error && <Problem error={approve.error} />}
        {allocation && <Stands allocation={allocation} meter={request.meter} />}
        <div className="grid gap-4 sm:grid-cols-2">
          <TextField
            label={t(`adminRequests.amount.${request.meter}`)}
            hint={t('adminRequests.amountHint', { asked: shown(request.meter, request.amount) })}
            autoComplete="off"
            inputMode={request.meter === 'usd' ? 'decimal' : 'text'}
            value={amount}
            error={
              tried && !amountIs ? t('ask.errors.amount') : fieldError(approve.error, 'amount')
            }
            onChange={(event) => setAmount(event.target.value)}
          />
          <SelectField
            label={t('ask.until')}
            value={until}
            error={until === 'date' ? undefined : fieldError(approve.error, 'expires')}
            onChange={(event) => setUntil(event.target.value)}
          >
            {!named && !isDate && <option value="asked">{t('adminRequests.asAsked')}</option>}
            {UNTILS.map((one) => (
              <option key={one} value={one}>
                {t(`ask.untils.${one}`)}
              </option>
            ))}
          </SelectField>
          {until === 'date' && (
            <TextField
              label={t('ask.date')}
              type="date"
              min={isoDate(new Date())}
              value={date}
              error={tried && !dateIs ? t('ask.errors.date') : fieldError(approve.error, 'expires')}
              onChange={(event) => setDate(event.target.value)}
            />
          )}
        </div>
        <TextArea
          label={t('adminRequests.note')}
          hint={t('adminRequests.noteHint')}
          rows={2}
          maxLength={500}
          value={reason}
          onChange={(event) => setReason(event.target.value)}
        />
        {expires !== request.expires && (
          <p className="text-xs text-soft">
            {t('adminRequests.askedUntil')} {asked(request.expires)}
          </p>
        )}
        <DialogActions>
          <Button onClick={onClose}>{t('common.cancel')}</Button>
          <Button type="submit" look="main" icon="check" busy={approve.isPending}>
            {amountIs
              ? t('adminRequests.approveMore', { more: `+${shown(request.meter, read)}` })
              : t('adminRequests.approve')}
          </Button>
        </DialogActions>
      </form>
    </Dialog>
  )
}

function DeclineDialog({ request, onClose }: { request: RequestRow; onClose: () => void }) {
  const { t } = useWords()
  const shown = useAmount()
  const refresh = useRefresh()
  const { member } = useBehind()(request)
  const [reason, setReason] = useState('')
  const [tried, setTried] = useState(false)
  const decline = useMutation({
    mutationFn: () =>
      ok(
        api.POST('/api/admin/requests/{id}/decline', {
          params: { path: { id: request.id } },
          body: { reason: reason.trim() },
        }),
      ),
    onSuccess: async () => {
      await refresh(SPEND)
      toast(t('adminRequests.declined'))
      onClose()
    },
  })
  const submit = (event: FormEvent) => {
    event.preventDefault()
    setTried(true)
    if (reason.trim()) decline.mutate()
  }
  return (
    <Dialog
      open
      onClose={onClose}
      title={t('adminRequests.declineTitle', { who: member?.display_name ?? '' })}
      about={t('adminRequests.declineAbout', { more: `+${shown(request.meter, request.amount)}` })}
    >
      <form onSubmit={submit} className="flex flex-col gap-4" noValidate>
        {decline.error && <Problem error={decline.error} />}
        <TextArea
          label={t('adminRequests.why')}
          hint={t('adminRequests.whyHint')}
          maxLength={500}
          value={reason}
          error={
            tried && !reason.trim()
              ? t('adminRequests.whyMissing')
              : fieldError(decline.error, 'reason')
          }
          onChange={(event) => setReason(event.target.value)}
        />
        <DialogActions>
          <Button onClick={onClose}>{t('common.cancel')}</Button>
          <Button type="submit" look="destroy" busy={decline.isPending}>
            {t('adminRequests.decline')}
          </Button>
        </DialogActions>
      </form>
    </Dialog>
  )
}

const STATUSES: Record<RequestRow['status'], [Tone, IconName]> = {
  open: ['warn', 'clock'],
  approved: ['good', 'check'],
  declined: ['bad', 'close'],
  withdrawn: ['idle', 'rotate'],
}

function History() {
  const { t } = useWords()
  const shown = useAmount()
  const until = useUntil()
  const behind = useBehind()
  const pages = useInfiniteQuery(requestsQuery)
  const decided = pages.data && {
    ...pages,
    data: pages.data.pages.flatMap((page) => page.items).filter((one) => one.status !== 'open'),
  }
  return (
    <Card title={t('adminRequests.history')} flush>
      <Answered of={decided ?? { ...pages, data: undefined }}>
        {(rows) =>
          rows.length === 0 && !pages.hasNextPage ? (
            <Empty icon="clock" title={t('adminRequests.noHistory')} />
          ) : (
            <DataTable
              caption={t('adminRequests.history')}
              rows={rows}
              id={(row) => row.id}
              columns={[
                {
                  name: 'who',
                  head: t('adminRequests.who'),
                  title: true,
                  cell: (row) => {
                    const { member, allocation } = behind(row)
                    return (
                      <span className="flex flex-col">
                        <span className="font-medium">{member?.display_name ?? '…'}</span>
                        <span className="text-xs font-normal">
                          <TextLink to="/admin/allocations" search={{ id: row.allocation_id }}>
                            {allocation?.name ?? '…'}
                          </TextLink>
                        </span>
                      </span>
                    )
                  },
                },
                {
                  name: 'more',
                  head: t('adminRequests.more'),
                  cell: (row) => (
                    <>
                      <span className="tabular-nums">+{shown(row.meter, row.amount)}</span>
                      <span className="block text-xs text-soft">
                        {t('ask.until')} {until(row.expires)}
                      </span>
                    </>
                  ),
                },
                { name: 'reason', head: t('ask.reason'), wide: true, cell: (row) => row.reason },
                {
                  name: 'status',
                  head: t('adminRequests.answer'),
                  cell: (row) => {
                    const [tone, icon] = STATUSES[row.status]
                    return (
                      <>
                        <ToneBadge
                          tone={tone}
                          icon={icon}
                          label={t(`adminRequests.statuses.${row.status}`)}
                        />
                        {row.decision_reason && (
                          <span className="block text-xs text-soft">{row.decision_reason}</span>
                        )}
                      </>
                    )
                  },
                },
                {
                  name: 'when',
                  head: t('adminRequests.decided'),
                  cell: (row) => (
                    <>
                      <When at={row.decided_at ?? row.created_at} />
                      {row.decided_by && (
                        <span className="block text-xs text-soft">{row.decided_by}</span>
                      )}
                    </>
                  ),
                },
              ]}
            />
          )
        }
      </Answered>
      <More of={pages} />
    </Card>
  )
}
