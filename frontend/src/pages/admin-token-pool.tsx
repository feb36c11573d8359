/** Token pool: sharing out a pool's token caps by last month's use; shown first, then done. */
import { useInfiniteQuery, useMutation, useQuery } from '@tanstack/react-query'
import { useState } from 'react'

import {
  type PoolRow,
  type RebalanceRun,
  SPEND,
  poolsQuery,
  rebalanceQuery,
  rebalancesQuery,
} from '@/api/admin-spend'
import { api, ok } from '@/api/client'
import { useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { formatCount } from '@/lib/money'
import { readWhy } from '@/lib/rebalance'
import { useSession } from '@/shell/gate'
import { useAddress } from '@/ui/address'
import { Button, LinkButton, TextLink } from '@/ui/button'
import { Confirm } from '@/ui/dialog'
import { SelectField, TextArea } from '@/ui/field'
import { More } from '@/ui/filters'
import { Count, When } from '@/ui/format'
import { ToneBadge } from '@/ui/meter'
import { Answered, Card, Empty, Page } from '@/ui/page'
import { DataTable } from '@/ui/table'
import { toast } from '@/ui/toast'

type CapChange = RebalanceRun['changes'][number]

export default function AdminTokenPool() {
  const { t } = useWords()
  const pools = useQuery(poolsQuery)
  const [address, change] = useAddress()
  return (
    <Page title={t('nav.adminTokenPool')} about={t('adminTokenPool.about')}>
      <Answered of={pools}>
        {(rows) => {
          const sorted = [...rows].sort(
            (a, b) =>
              Number(b.shares_out) - Number(a.shares_out) ||
              Number(b.allocations > 0) - Number(a.allocations > 0) ||
              a.name.localeCompare(b.name),
          )
          const pool = sorted.find((one) => one.id === address.pool_id) ?? sorted[0]
          return pool === undefined ? (
            <Card>
              <Empty
                icon="shuffle"
                title={t('adminTokenPool.none')}
                actions={
                  <LinkButton look="main" to="/admin/pools">
                    {t('adminTokenPool.toPools')}
                  </LinkButton>
                }
              >
                {t('adminTokenPool.noneHint')}
              </Empty>
            </Card>
          ) : (
            <>
              <div className="flex flex-wrap items-end gap-x-5 gap-y-2">
                <SelectField
                  label={t('adminTokenPool.pool')}
                  className="w-72 max-w-full"
                  value={pool.id}
                  onChange={(event) => change({ pool_id: event.target.value })}
                >
                  {sorted.map((one) => (
                    <option key={one.id} value={one.id}>
                      {one.name}
                    </option>
                  ))}
                </SelectField>
                <p className="pb-1.5 text-soft">
                  {pool.shares_out ? t('adminTokenPool.monthly') : t('adminTokenPool.byHand')}{' '}
                  <TextLink to="/admin/pools" search={{ id: pool.id }}>
                    {t('adminTokenPool.toPool')}
                  </TextLink>
                </p>
              </div>
              <DryRun key={pool.id} pool={pool} />
              <Log key={`log ${pool.id}`} pool={pool} />
            </>
          )
        }}
      </Answered>
    </Page>
  )
}

const changed = (run: RebalanceRun) =>
  run.changes.filter((one) => one.before_tokens !== one.after_tokens)

function DryRun({ pool }: { pool: PoolRow }) {
  const { t, locale } = useWords()
  const admin = useSession().member.role === 'admin'
  const [running, setRunning] = useState(false)
  const plan = useQuery({ ...rebalanceQuery(pool.id), enabled: admin && pool.allocations > 0 })
  if (pool.allocations === 0) {
    return (
      <Card>
        <Empty
          icon="pool"
          title={t('adminTokenPool.empty')}
          actions={
            <LinkButton to="/admin/allocations">{t('adminTokenPool.toAllocations')}</LinkButton>
          }
        >
          {t('adminTokenPool.emptyHint')}
        </Empty>
      </Card>
    )
  }
  // A dry run writes nothing, but the server takes it as a write: auditors read the log.
  if (!admin) return null
  const changes = plan.data ? changed(plan.data) : []
  return (
    <Card
      title={t('adminTokenPool.dryRun')}
      actions={
        <Button
          icon="shuffle"
          look="main"
          disabled={changes.length === 0}
          onClick={() => setRunning(true)}
        >
          {t('adminTokenPool.run')}
        </Button>
      }
      flush={plan.data !== undefined}
    >
      <Answered of={plan}>
        {(run) => (
          <>
            <p className="border-b border-line px-4 py-2.5 text-soft">
              {t('adminTokenPool.total', {
                total: formatCount(run.total_tokens, locale),
              })}{' '}
              {changes.length === 0
                ? t('adminTokenPool.unchanged')
                : t('adminTokenPool.wouldChange', { count: changes.length })}
            </p>
            <Changes changes={run.changes} caption={t('adminTokenPool.dryRun')} />
          </>
        )}
      </Answered>
      {running && plan.data && (
        <Run pool={pool} plan={plan.data} onClose={() => setRunning(false)} />
      )}
    </Card>
  )
}

function Run({ pool, plan, onClose }: { pool: PoolRow; plan: RebalanceRun; onClose: () => void }) {
  const { t } = useWords()
  const refresh = useRefresh()
  const [reason, setReason] = useState('')
  const run = useMutation({
    mutationFn: () =>
      ok(
        api.POST('/api/admin/pools/{id}/rebalance', {
          params: { path: { id: pool.id } },
          body: { dry_run: false, reason: reason.trim() || null },
        }),
      ),
    onSuccess: async (done) => {
      toast(t('adminTokenPool.done', { count: changed(done).length }))
      await refresh(SPEND)
    },
  })
  return (
    <Confirm
      open
      onClose={onClose}
      title={t('adminTokenPool.runTitle', { name: pool.name })}
      look="main"
      action={t('adminTokenPool.run')}
      onConfirm={() => run.mutateAsync()}
    >
      <p>{t('adminTokenPool.runEffect', { count: changed(plan).length })}</p>
      <TextArea
        label={t('adminAllocations.reason')}
        hint={t('adminAllocations.reasonHint')}
        rows={2}
        maxLength={500}
        value={reason}
        onChange={(event) => setReason(event.target.value)}
      />
    </Confirm>
  )
}

function Changes({ changes, caption }: { changes: readonly CapChange[]; caption: string }) {
  const { t } = useWords()
  return (
    <DataTable
      caption={caption}
      rows={changes}
      id={(row) => row.allocation_id}
      columns={[
        {
          name: 'allocation',
          head: t('adminAllocations.allocation'),
          title: true,
          cell: (row) => (
            <TextLink to="/admin/allocations" search={{ id: row.allocation_id }}>
              {row.allocation_name}
            </TextLink>
          ),
        },
        {
          name: 'used',
          head: t('adminTokenPool.used'),
          end: true,
          cell: (row) => <Count value={row.used_tokens} />,
        },
        {
          name: 'before',
          head: t('adminTokenPool.before'),
          end: true,
          cell: (row) => <Cap tokens={row.before_tokens} />,
        },
        {
          name: 'after',
          head: t('adminTokenPool.after'),
          end: true,
          cell: (row) => (
            <strong className={row.before_tokens === row.after_tokens ? 'font-normal' : 'font-semibold'}>
              <Cap tokens={row.after_tokens} />
            </strong>
          ),
        },
        { name: 'change', head: t('adminTokenPool.change'), end: true, cell: (row) => <Step row={row} /> },
        { name: 'why', head: t('adminTokenPool.why'), wide: true, cell: (row) => <Why reason={row.reason} /> },
      ]}
    />
  )
}

function Cap({ tokens }: { tokens: number | null }) {
  const { t } = useWords()
  return tokens === null ? <>{t('meter.noCap')}</> : <Count value={tokens} />
}

function Step({ row }: { row: CapChange }) {
  const { t, locale } = useWords()
  const step = (row.after_tokens ?? 0) - (row.before_tokens ?? 0)
  if (step === 0) return <span className="text-soft">{t('adminTokenPool.same')}</span>
  const shown = `${step > 0 ? '+' : '−'}${formatCount(Math.abs(step), locale)}`
  return <span className="tabular-nums">{shown}</span>
}

function Why({ reason }: { reason: string }) {
  const { t, locale } = useWords()
  const why = readWhy(reason)
  if (why === null) return <span lang="en">{reason}</span>
  const used = why.used && {
    own: formatCount(why.used.own, locale),
    all: formatCount(why.used.all, locale),
  }
  return (
    <span className="text-soft">
      {t(`adminTokenPool.kinds.${why.kind}`)}
      {used && ` ${t('adminTokenPool.whyUsed', used)}`}
      {why.leftOver && ` ${t('adminTokenPool.leftOver', { rest: why.leftOver })}`}
    </span>
  )
}

function Log({ pool }: { pool: PoolRow }) {
  const { t, locale } = useWords()
  const pages = useInfiniteQuery(rebalancesQuery(pool.id))
  const [open, setOpen] = useState<string | null>(null)
  const runs = { ...pages, data: pages.data?.pages.flatMap((page) => page.items) }
  return (
    <Card title={t('adminTokenPool.log')} flush={runs.data !== undefined}>
      <Answered of={runs}>
        {(rows) =>
          rows.length === 0 ? (
            <Empty icon="clock" title={t('adminTokenPool.noLog')}>
              {t('adminTokenPool.noLogHint')}
            </Empty>
          ) : (
            <DataTable
              caption={t('adminTokenPool.log')}
              rows={rows}
              id={(row) => row.id!}
              columns={[
                {
                  name: 'when',
                  head: t('adminTokenPool.when'),
                  title: true,
                  cell: (row) => <When at={row.created_at!} />,
                },
                {
                  name: 'who',
                  head: t('adminTokenPool.who'),
                  cell: (row) =>
                    row.automatic ? (
                      <ToneBadge tone="idle" icon="clock" label={t('adminTokenPool.automatic')} />
                    ) : (
                      row.actor
                    ),
                },
                {
                  name: 'total',
                  head: t('adminTokenPool.shared'),
                  end: true,
                  cell: (row) => <Count value={row.total_tokens} />,
                },
                {
                  name: 'changed',
                  head: t('adminTokenPool.changed'),
                  end: true,
                  cell: (row) => formatCount(changed(row).length, locale),
                },
                {
                  name: 'open',
                  head: '',
                  actions: true,
                  end: true,
                  cell: (row) => (
                    <Button
                      look="quiet"
                      icon={open === row.id ? 'down' : 'right'}
                      aria-expanded={open === row.id}
                      onClick={() => setOpen(open === row.id ? null : row.id)}
                    >
                      {t('adminTokenPool.details')}
                    </Button>
                  ),
                },
              ]}
              below={(row) =>
                open === row.id && (
                  <div className="rounded-lg border border-line">
                    <Changes changes={row.changes} caption={t('adminTokenPool.details')} />
                  </div>
                )
              }
            />
          )
        }
      </Answered>
      <More of={pages} />
    </Card>
  )
}
