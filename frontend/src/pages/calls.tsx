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
import { SelectField, TextField } from '@/ui/field'
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
      <form
        role="search"
        aria-label={t('calls.filter')}
        onSubmit={(event) => event.preventDefault()}
        className="grid grid-cols-2 gap-3 lg:grid-cols-6"
      >
        <SelectField
          label={t('calls.outcome')}
          value={filters.outcome ?? ''}
          onChange={(event) => show({ outcome: event.target.value as Outcome })}
        >
          <option value="">{t('common.all')}</option>
          {ALL_OUTCOMES.map((one) => (
            <option key={one} value={one}>
              {t(`outcomes.${one}`)}
            </option>
          ))}
        </SelectField>
        <SelectField
          label={t('calls.model')}
          value={filters.model ?? ''}
          onChange={(event) => show({ model: event.target.value })}
        >
          <option value="">{t('common.all')}</option>
          {[...new Set([...models, ...(filters.model ? [filters.model] : [])])].map((one) => (
            <option key={one}>{one}</option>
          ))}
        </SelectField>
        <SelectField
          label={t('calls.allocation')}
          value={filters.allocation_id ?? ''}
          onChange={(event) => show({ allocation_id: event.target.value })}
        >
          <option value="">{t('common.all')}</option>
          {allocations.data?.map((one) => (
            <option key={one.id} value={one.id}>
              {one.name}
            </option>
          ))}
        </SelectField>
        <SelectField
          label={t('calls.key')}
          value={filters.key_id ?? ''}
          onChange={(event) => show({ key_id: event.target.value })}
        >
          <option value="">{t('common.all')}</option>
          {keys.data?.map((one) => (
            <option key={one.id} value={one.id}>
              {one.name}
            </option>
          ))}
        </SelectField>
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
      </form>
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
                    end: true,
                    cell: (call) => (
                      <button
                        type="button"
                        onClick={() => setOpen(call)}
                        aria-label={t('calls.detailsOf', { model: call.model, id: call.id.slice(-6) })}
                        className="rounded-sm text-accent underline underline-offset-3"
                      >
                        {t('calls.details')}
                      </button>
                    ),
                  },
                ]}
              />
              {calls.hasNextPage && (
                <div className="flex justify-center border-t border-line p-3">
                  <Button
                    icon="down"
                    busy={calls.isFetchingNextPage}
                    onClick={() => void calls.fetchNextPage()}
                  >
                    {t('common.more')}
                  </Button>
                </div>
              )}
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
