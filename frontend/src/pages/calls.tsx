/** Calls: what was asked, how it ended, what it cost, and why it was refused if it was. */
import { useInfiniteQuery, useQuery } from '@tanstack/react-query'
import { useNavigate, useSearch } from '@tanstack/react-router'
import { useState } from 'react'

import {
  type Call,
  type CallFilters,
  type Outcome,
  myAllocationsQuery,
  myCallsQuery,
  myKeysQuery,
} from '@/api/queries'
import { useWords } from '@/i18n'
import { Button, TextLink } from '@/ui/button'
import { CallDetails } from '@/ui/call-details'
import { Dialog } from '@/ui/dialog'
import { TextField } from '@/ui/field'
import { Choice, Filters, More } from '@/ui/filters'
import { Count, Money, When } from '@/ui/format'
import { ALL_OUTCOMES, OutcomeBadge, Shortfall } from '@/ui/outcome'
import { Answered, Card, Empty, Page } from '@/ui/page'
import { DataTable } from '@/ui/table'

const FIELDS = ['allocation_id', 'key_id', 'model', 'endpoint', 'outcome', 'from', 'to'] as const

export default function Calls() {
  const { t } = useWords()
  const search: Record<string, string> = useSearch({ strict: false })
  const filters = Object.fromEntries(
    FIELDS.flatMap((name) => (search[name] ? [[name, search[name]]] : [])),
  ) as CallFilters
  const navigate = useNavigate()
  const show = (changed: Record<string, string | undefined>) =>
    void navigate({ to: '/calls', search: { ...filters, ...changed } as never, replace: true })
  const allocations = useQuery(myAllocationsQuery)
  const keys = useQuery(myKeysQuery)
  const calls = useInfiniteQuery(myCallsQuery(filters))
  const [open, setOpen] = useState<Call | null>(null)
  const names = new Map([
    ...(allocations.data?.map((one) => [one.id, one.name] as const) ?? []),
    ...(keys.data?.map((one) => [one.id, one.name] as const) ?? []),
  ])
  const models = [...new Set(allocations.data?.flatMap((one) => one.models))].sort()
  const filtered = Object.keys(filters).length > 0
  return (
    <Page title={t('nav.calls')} about={t('calls.about')}>
      <Filters label={t('calls.filter')}>
        <Choice
          label={t('calls.outcome')}
          value={filters.outcome}
          onChange={(value) => show({ outcome: value as Outcome })}
          options={ALL_OUTCOMES.map((one) => [one, t(`outcomes.${one}`)] as const)}
        />
        <Choice
          label={t('calls.model')}
          value={filters.model}
          onChange={(value) => show({ model: value })}
          options={[...new Set([...models, ...(filters.model ? [filters.model] : [])])].map((one) => [one, one] as const)}
        />
        <Choice
          label={t('calls.allocation')}
          value={filters.allocation_id}
          onChange={(value) => show({ allocation_id: value })}
          options={allocations.data?.map((one) => [one.id, one.name] as const) ?? []}
        />
        <Choice
          label={t('calls.key')}
          value={filters.key_id}
          onChange={(value) => show({ key_id: value })}
          options={keys.data?.map((one) => [one.id, one.name] as const) ?? []}
        />
        <TextField
          label={t('calls.from')}
          type="date"
          value={filters.from ?? ''}
          onChange={(event) => show({ from: event.target.value })}
        />
        <TextField
          label={t('calls.to')}
          type="date"
          value={filters.to ?? ''}
          onChange={(event) => show({ to: event.target.value })}
        />
      </Filters>
      {filtered && (
        <div className="-mt-2 flex flex-wrap items-center gap-2">
          {filters.endpoint && (
            <span className="rounded bg-sunk px-2 py-1 font-mono text-xs">{filters.endpoint}</span>
          )}
          <Button
            icon="close"
            look="quiet"
            onClick={() => void navigate({ to: '/calls', search: {} as never, replace: true })}
          >
            {t('calls.clear')}
          </Button>
        </div>
      )}
      <Answered of={calls}>
        {({ pages }) => {
          const rows = pages.flatMap((page) => page.items)
          if (rows.length === 0) {
            return (
              <Card>
                <Empty icon="list" title={filtered ? t('calls.noneSuch') : t('calls.none')}>
                  {filtered ? (
                    t('calls.noneSuchHint')
                  ) : (
                    <>
                      {t('calls.noneHint')} <TextLink to="/keys">{t('usage.noneLink')}</TextLink>
                    </>
                  )}
                </Empty>
              </Card>
            )
          }
          return (
            <Card flush>
              <DataTable
                caption={t('nav.calls')}
                rows={rows}
                id={(call) => call.id}
                below={(call) =>
                  call.limit && <Shortfall limit={call.limit} name={names.get(call.limit.owner_id)} />
                }
                columns={[
                  {
                    name: 'time',
                    head: t('calls.time'),
                    cell: (call) => <When at={call.started_at} seconds />,
                  },
                  {
                    name: 'outcome',
                    head: t('calls.outcome'),
                    cell: (call) => <OutcomeBadge outcome={call.outcome} />,
                  },
                  {
                    name: 'model',
                    head: t('calls.model'),
                    title: true,
                    cell: (call) => (
                      <>
                        {call.model}
                        <span className="block text-xs text-soft">{call.endpoint}</span>
                      </>
                    ),
                  },
                  {
                    name: 'key',
                    head: t('calls.key'),
                    cell: (call) => names.get(call.key_id) ?? '–',
                  },
                  {
                    name: 'tokens',
                    head: t('calls.tokens'),
                    end: true,
                    optional: (call) => call.tokens > 0,
                    cell: (call) => <Count value={call.tokens} />,
                  },
                  {
                    name: 'cost',
                    head: t('calls.cost'),
                    end: true,
                    cell: (call) => <Money usd={call.cost_usd} />,
                  },
                  {
                    name: 'more',
                    head: '',
                    actions: true,
                    end: true,
                    cell: (call) => (
                      <Button
                        look="quiet"
                        className="max-md:-ml-3 md:-mr-3"
                        aria-label={t('calls.detailsOf', { model: call.model, id: call.id.slice(-6) })}
                        onClick={() => setOpen(call)}
                      >
                        {t('calls.details')}
                      </Button>
                    ),
                  },
                ]}
              />
              <More of={calls} />
            </Card>
          )
        }}
      </Answered>
      <Dialog
        open={open !== null}
        onClose={() => setOpen(null)}
        title={t('calls.one')}
        {...(open ? { about: `${open.model} · ${open.endpoint}` } : {})}
      >
        {open && <CallDetails call={open} names={names} />}
      </Dialog>
    </Page>
  )
}
