/** Calls, for admins: the rows behind the figures of the overview. */
import { useInfiniteQuery, useQuery } from '@tanstack/react-query'
import { useMemo } from 'react'

import {
  REFUSALS,
  allocationsQuery,
  callsQuery,
  membersQuery,
  modelSlugsQuery,
} from '@/api/admin-spend'
import type { Outcome } from '@/api/queries'
import { useWords } from '@/i18n'
import { isoDate } from '@/lib/time'
import { useAddress } from '@/ui/address'
import { TextLink } from '@/ui/button'
import { Choice, Filters, More } from '@/ui/filters'
import { Count, Money, When } from '@/ui/format'
import { ALL_OUTCOMES, OutcomeBadge, Shortfall } from '@/ui/outcome'
import { Answered, Card, Empty, Page } from '@/ui/page'
import { DataTable } from '@/ui/table'

const WHENS = ['hour', 'day', 'month'] as const

/** Where a span begins, as the API filters by it: a date is its midnight where bills are made. */
function begin(when: string | undefined): string | undefined {
  const now = new Date()
  if (when === 'hour') return new Date(now.getTime() - 3_600_000).toISOString()
  if (when === 'day') return isoDate(now, 'UTC')
  if (when === 'month') return `${isoDate(now, 'UTC').slice(0, 8)}01`
  return undefined
}

export default function AdminCalls() {
  const { t } = useWords()
  const [address, change] = useAddress()
  const { when, model, allocation_id, member_id } = address
  const refused = address.refused === 'yes'
  const outcome = address.outcome as Outcome | undefined
  const from = useMemo(() => begin(when), [when])
  const calls = useInfiniteQuery(
    callsQuery({ allocation_id, member_id, model, outcome, from }, refused),
  )
  const members = useQuery(membersQuery)
  const allocations = useQuery(allocationsQuery)
  const models = useQuery(modelSlugsQuery)
  const set = (name: string) => (value: string) => change({ [name]: value })
  const setOutcome = (value: string) =>
    change(
      value === 'refused'
        ? { refused: 'yes', outcome: undefined }
        : { refused: undefined, outcome: value },
    )
  const rows = { ...calls, data: calls.data?.pages.flatMap((page) => page.items) }
  return (
    <Page title={t('nav.adminCalls')} about={t('adminOverview.calls.about')}>
      <Filters label={t('adminOverview.calls.filter')}>
        <Choice
          label={t('adminOverview.calls.when')}
          value={when}
          onChange={set('when')}
          options={WHENS.map((one) => [one, t(`adminOverview.calls.whens.${one}`)] as const)}
        />
        <Choice
          label={t('adminOverview.calls.outcome')}
          value={refused ? 'refused' : outcome}
          onChange={setOutcome}
          options={[
            ['refused', t('adminOverview.calls.refusals')],
            ...ALL_OUTCOMES.map((one) => [one, t(`outcomes.${one}`)] as const),
          ]}
        />
        <Choice
          label={t('adminOverview.model')}
          value={model}
          onChange={set('model')}
          options={[...new Set([...(models.data ?? []), ...(model ? [model] : [])])].map((one) => [one, one] as const)}
        />
        <Choice
          label={t('adminAllocations.allocation')}
          value={allocation_id}
          onChange={set('allocation_id')}
          options={allocations.data?.map((one) => [one.id, one.name] as const) ?? []}
        />
        <Choice
          label={t('adminAllocations.member')}
          value={member_id}
          onChange={set('member_id')}
          options={members.data?.map((one) => [one.id, one.display_name] as const) ?? []}
        />
      </Filters>
      <Card flush>
        <Answered of={rows}>
          {(found) =>
            found.length === 0 ? (
              <Empty icon="list" title={t('adminOverview.calls.none')}>
                {t('adminOverview.calls.noneHint')}
              </Empty>
            ) : (
              <DataTable
                caption={t('nav.adminCalls')}
                rows={found}
                id={(row) => row.id}
                below={(row) => row.limit && <Shortfall limit={row.limit} />}
                columns={[
                  {
                    name: 'outcome',
                    head: t('adminOverview.calls.outcome'),
                    title: true,
                    cell: (row) => <OutcomeBadge outcome={row.outcome} />,
                  },
                  {
                    name: 'when',
                    head: t('adminOverview.calls.at'),
                    cell: (row) => <When at={row.started_at} />,
                  },
                  {
                    name: 'who',
                    head: t('adminAllocations.allocation'),
                    cell: (row) => (
                      <>
                        {row.allocation_id ? (
                          <TextLink to="/admin/allocations" search={{ id: row.allocation_id }}>
                            {allocations.data?.find((one) => one.id === row.allocation_id)?.name ?? '…'}
                          </TextLink>
                        ) : (
                          <span className="text-soft">—</span>
                        )}
                        <span className="block text-xs text-soft">
                          {members.data?.find((one) => one.id === row.member_id)?.display_name}
                        </span>
                      </>
                    ),
                  },
                  {
                    name: 'model',
                    head: t('adminOverview.model'),
                    cell: (row) => <span className="font-mono text-xs">{row.model}</span>,
                  },
                  {
                    name: 'tokens',
                    head: t('meters.tokens'),
                    end: true,
                    cell: (row) => <Count value={row.tokens} />,
                  },
                  {
                    name: 'cost',
                    head: t('adminOverview.calls.cost'),
                    end: true,
                    cell: (row) => <Money usd={row.cost_usd} />,
                  },
                ]}
              />
            )
          }
        </Answered>
        <More of={calls} />
      </Card>
      {refused && rows.data && rows.data.length >= REFUSALS.length && (
        <p className="text-xs text-soft">{t('adminOverview.calls.newest')}</p>
      )}
    </Page>
  )
}
