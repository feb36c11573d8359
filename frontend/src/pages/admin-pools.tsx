/** Pools: what allocations share, how it lies within each other, and how its limits stand. */
import { useMutation, useQuery } from '@tanstack/react-query'
import { type FormEvent, useState } from 'react'

import { type PoolLimit, type PoolRow, SPEND, poolsQuery } from '@/api/admin-spend'
import { api, ok } from '@/api/client'
import { useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { fieldError } from '@/i18n/errors'
import { readCap } from '@/lib/caps'
import { type Meter as MeterName, readWindow } from '@/lib/limits'
import { useSession } from '@/shell/gate'
import { useAddress } from '@/ui/address'
import { Button, IconButton, LinkButton, TextLink } from '@/ui/button'
import { Dialog, DialogActions } from '@/ui/dialog'
import { CheckField, SelectField, TextArea, TextField } from '@/ui/field'
import { When, useAmount } from '@/ui/format'
import { Icon } from '@/ui/icons'
import { useLimitName } from '@/ui/limit-name'
import { Meter, ToneBadge } from '@/ui/meter'
import { Answered, Card, Empty, Page, Problem } from '@/ui/page'
import { toast } from '@/ui/toast'

export interface Placed {
  pool: PoolRow
  depth: number
  inside: Placed[]
}

/** Pools within pools, each level by name. */
export function treeOf(pools: readonly PoolRow[], parent: string | null = null, depth = 0): Placed[] {
  return pools
    .filter((pool) => pool.parent_id === parent)
    .sort((a, b) => a.name.localeCompare(b.name))
    .map((pool) => ({ pool, depth, inside: treeOf(pools, pool.id, depth + 1) }))
}

export const flat = (tree: Placed[]): Placed[] =>
  tree.flatMap((one) => [one, ...flat(one.inside)])

export default function AdminPools() {
  const { t } = useWords()
  const admin = useSession().member.role === 'admin'
  const pools = useQuery(poolsQuery)
  const [open, setOpen] = useState<{ pool?: PoolRow; parent?: string } | null>(null)
  const add = admin && (
    <Button icon="plus" look="main" onClick={() => setOpen({})}>
      {t('adminPools.add')}
    </Button>
  )
  return (
    <Page title={t('nav.adminPools')} about={t('adminPools.about')} actions={add}>
      <Answered of={pools}>
        {(rows) =>
          rows.length === 0 ? (
            <Card>
              <Empty icon="pool" title={t('adminPools.none')} actions={add}>
                {t('adminPools.noneHint')}
              </Empty>
            </Card>
          ) : (
            <Tree
              tree={treeOf(rows)}
              admin={admin}
              edit={(pool) => setOpen({ pool })}
              addIn={(parent) => setOpen({ parent })}
            />
          )
        }
      </Answered>
      {open && (
        <PoolDialog
          {...open}
          pools={pools.data ?? []}
          onClose={() => setOpen(null)}
        />
      )}
    </Page>
  )
}

interface Can {
  admin: boolean
  edit: (pool: PoolRow) => void
  addIn: (parent: string) => void
}

function Tree({ tree, ...can }: { tree: Placed[] } & Can) {
  const { t } = useWords()
  return (
    <ul className="flex flex-col gap-3" aria-label={tree[0]!.depth === 0 ? t('nav.adminPools') : undefined}>
      {tree.map((one) => (
        <li key={one.pool.id} className="flex min-w-0 flex-col gap-3">
          <Pool pool={one.pool} {...can} />
          {one.inside.length > 0 && (
            <div className="ml-3 border-l-2 border-line pl-3 sm:ml-6 sm:pl-5">
              <Tree tree={one.inside} {...can} />
            </div>
          )}
        </li>
      ))}
    </ul>
  )
}

function Pool({ pool, admin, edit, addIn }: { pool: PoolRow } & Can) {
  const { t } = useWords()
  const [{ id }] = useAddress()
  const limitName = useLimitName()
  return (
    <article
      aria-label={pool.name}
      className={`flex min-w-0 flex-col gap-3 rounded-xl border bg-card p-4 shadow-card ${id === pool.id ? 'border-accent ring-1 ring-accent' : 'border-line'}`}
    >
      <header className="flex flex-wrap items-center justify-between gap-x-4 gap-y-2">
        <div className="flex min-w-0 flex-wrap items-center gap-x-2 gap-y-1">
          <Icon name="pool" className="size-5 text-soft" />
          <h2 className="font-semibold">{pool.name}</h2>
          {pool.shares_out && (
            <ToneBadge tone="good" icon="shuffle" label={t('adminPools.sharesOut')} />
          )}
          {pool.limits.some((limit) => limit.exceeded) && (
            <ToneBadge tone="bad" icon="stop" label={t('states.exhausted')} />
          )}
        </div>
        {admin && (
          <span className="flex flex-wrap gap-2">
            <Button
              icon="plus"
              look="quiet"
              aria-label={t('adminPools.addIn', { name: pool.name })}
              onClick={() => addIn(pool.id)}
            >
              {t('adminPools.addInside')}
            </Button>
            <Button
              icon="edit"
              aria-label={t('adminPools.editOf', { name: pool.name })}
              onClick={() => edit(pool)}
            >
              {t('adminPools.edit')}
            </Button>
          </span>
        )}
      </header>
      <div className="grid gap-x-8 gap-y-4 md:grid-cols-2">
        {month(pool).map((one) => (
          <Meter
            key={one.meter}
            label={t(`adminPools.month.${one.meter}`)}
            name={`${pool.name}: ${t(`adminPools.month.${one.meter}`)}`}
            {...one}
          />
        ))}
        {pool.limits
          .filter((limit) => limit.window !== 'month')
          .map((limit) => (
            <div key={limit.meter + limit.window} className="flex flex-col gap-1">
              <Meter
                label={limitName(limit)}
                name={`${pool.name}: ${limitName(limit)}`}
                meter={limit.meter}
                amount={limit.amount}
                used={limit.used}
                held={limit.held}
              />
              <Resets limit={limit} />
            </div>
          ))}
      </div>
      <footer className="flex flex-wrap items-center gap-x-5 gap-y-1">
        {pool.allocations > 0 ? (
          <TextLink to="/admin/allocations" search={{ pool_id: pool.id }}>
            {t('adminPools.allocations', { count: pool.allocations })}
          </TextLink>
        ) : (
          <span className="text-soft">{t('adminPools.noAllocations')}</span>
        )}
        {pool.allocations > 0 && (
          <TextLink
            to="/admin/token-pool"
            search={{ pool_id: pool.id }}
            aria-label={t('adminPools.shareOutOf', { name: pool.name })}
          >
            {t('adminPools.shareOut')}
          </TextLink>
        )}
        {pool.unpriced_calls_this_month > 0 && (
          <span className="text-soft">
            {t('adminPools.unpriced', { count: pool.unpriced_calls_this_month })}
          </span>
        )}
        {pool.resets_at && (
          <span className="ml-auto text-xs text-soft">
            {t('allocations.resets')} <When at={pool.resets_at} />
          </span>
        )}
      </footer>
    </article>
  )
}

/** What was used this month of both meters, with its limit where there is one. */
const month = (pool: PoolRow) =>
  [
    {
      meter: 'usd' as const,
      amount: pool.quota_cost_usd_per_month,
      used: pool.cost_used_this_month,
      held: pool.cost_held,
    },
    {
      meter: 'tokens' as const,
      amount: pool.quota_tokens_per_month,
      used: pool.tokens_used_this_month,
      held: pool.tokens_held,
    },
  ] satisfies { meter: MeterName; amount: unknown; used: unknown; held: unknown }[]

function Resets({ limit }: { limit: PoolLimit }) {
  const { t } = useWords()
  if (!limit.resets_at) return null
  return (
    <p className="text-xs text-soft">
      {t('allocations.resets')} <When at={limit.resets_at} />
    </p>
  )
}

// The form

const WINDOWS = ['month', 'day', 'hour', 'lifetime'] as const

interface LimitLine {
  id: number
  meter: MeterName
  window: string
  amount: string
}

/** The pool itself and what lies in it: it cannot lie there. */
function within(pools: PoolRow[], id: string | undefined): Set<string> {
  if (id === undefined) return new Set()
  const found = new Set([id])
  for (let size = 0; size !== found.size; ) {
    size = found.size
    for (const pool of pools) if (pool.parent_id && found.has(pool.parent_id)) found.add(pool.id)
  }
  return found
}

function PoolDialog({
  pool,
  parent,
  pools,
  onClose,
}: {
  pool?: PoolRow
  parent?: string
  pools: PoolRow[]
  onClose: () => void
}) {
  const { t } = useWords()
  const shown = useAmount()
  const refresh = useRefresh()
  const [name, setName] = useState(pool?.name ?? '')
  const [parentId, setParentId] = useState(pool?.parent_id ?? parent ?? '')
  const [sharesOut, setSharesOut] = useState(pool?.shares_out ?? false)
  const [reason, setReason] = useState('')
  const [tried, setTried] = useState(false)
  const [lines, setLines] = useState<LimitLine[]>(() =>
    (pool?.limits ?? []).map((limit, id) => ({
      id,
      meter: limit.meter,
      window: limit.window,
      amount: String(limit.amount),
    })),
  )
  const change = (id: number, some: Partial<LimitLine>) =>
    setLines((before) => before.map((line) => (line.id === id ? { ...line, ...some } : line)))
  const amountOf = (line: LimitLine) => readCap(line.meter, line.amount)
  const wrongLine = (line: LimitLine) => {
    const amount = amountOf(line)
    if (amount === null || amount === undefined) return t('adminPools.errors.amount')
    const same = lines.find((one) => one.meter === line.meter && one.window === line.window)
    return same === line ? undefined : t('adminPools.errors.twice')
  }
  const wrong = !name.trim() || lines.some(wrongLine)
  const save = useMutation({
    mutationFn: () => {
      const body = {
        name,
        parent_id: parentId || null,
        shares_out: sharesOut,
        limits: lines.map((line) => ({
          meter: line.meter,
          window: line.window,
          amount: String(amountOf(line)),
        })),
        reason: reason.trim() || null,
      }
      return pool
        ? ok(api.PATCH('/api/admin/pools/{id}', { params: { path: { id: pool.id } }, body }))
        : ok(api.POST('/api/admin/pools', { body }))
    },
    onSuccess: async (saved) => {
      await refresh(SPEND)
      toast(t('adminPools.saved', { name: saved.name }))
      onClose()
    },
  })
  const submit = (event: FormEvent) => {
    event.preventDefault()
    setTried(true)
    if (!wrong) save.mutate()
  }
  const own = within(pools, pool?.id)
  const used = (line: LimitLine) =>
    pool?.limits.find((limit) => limit.meter === line.meter && limit.window === line.window)
  return (
    <Dialog
      open
      wide
      onClose={onClose}
      title={pool ? t('adminPools.editOf', { name: pool.name }) : t('adminPools.add')}
      about={t('adminPools.formAbout')}
    >
      <form onSubmit={submit} className="flex flex-col gap-4" noValidate>
        {save.error && <Problem error={save.error} />}
        <div className="grid gap-4 sm:grid-cols-2">
          <TextField
            label={t('adminPools.name')}
            maxLength={200}
            autoComplete="off"
            value={name}
            error={
              tried && !name.trim() ? t('adminPools.errors.name') : fieldError(save.error, 'name')
            }
            onChange={(event) => setName(event.target.value)}
          />
          <SelectField
            label={t('adminPools.parent')}
            value={parentId}
            error={fieldError(save.error, 'parent_id')}
            onChange={(event) => setParentId(event.target.value)}
          >
            <option value="">{t('adminPools.noParent')}</option>
            {flat(treeOf(pools))
              .filter((one) => !own.has(one.pool.id))
              .map((one) => (
                <option key={one.pool.id} value={one.pool.id}>
                  {'\u2003'.repeat(one.depth)}
                  {one.pool.name}
                </option>
              ))}
          </SelectField>
        </div>
        <fieldset className="flex min-w-0 flex-col gap-3">
          <legend className="mb-1 font-medium">{t('adminPools.limits')}</legend>
          <p className="-mt-1 text-xs text-soft">{t('adminPools.limitsHint')}</p>
          {lines.map((line) => {
            const standing = used(line)
            const windows = [...WINDOWS, line.window].filter((one, at, all) => all.indexOf(one) === at)
            return (
              <div
                key={line.id}
                className="grid grid-cols-[0.8fr_1fr_auto] items-start gap-2 sm:grid-cols-[1fr_1fr_1.5fr_auto]"
              >
                <SelectField
                  label={t('ask.meter')}
                  hiddenLabel
                  value={line.meter}
                  onChange={(event) => change(line.id, { meter: event.target.value as MeterName })}
                >
                  {(['usd', 'tokens'] as const).map((one) => (
                    <option key={one} value={one}>
                      {t(`meters.${one}`)}
                    </option>
                  ))}
                </SelectField>
                <SelectField
                  label={t('adminPools.window')}
                  hiddenLabel
                  value={line.window}
                  onChange={(event) => change(line.id, { window: event.target.value })}
                >
                  {windows.map((one) => {
                    const { name, hours } = readWindow(one)
                    return (
                      <option key={one} value={one}>
                        {t(`adminPools.windows.${name}`, { hours })}
                      </option>
                    )
                  })}
                </SelectField>
                <IconButton
                  icon="trash"
                  label={t('adminPools.removeLimit')}
                  className="sm:order-last"
                  onClick={() => setLines((before) => before.filter((one) => one.id !== line.id))}
                />
                <TextField
                  label={t('adminPools.amount')}
                  hiddenLabel
                  className="max-sm:col-span-3"
                  placeholder={t(`adminPools.amountHint.${line.meter}`)}
                  autoComplete="off"
                  value={line.amount}
                  hint={
                    standing &&
                    t('meter.used', { amount: shown(line.meter, standing.used) })
                  }
                  error={tried ? wrongLine(line) : undefined}
                  onChange={(event) => change(line.id, { amount: event.target.value })}
                />
              </div>
            )
          })}
          <div>
            <Button
              icon="plus"
              onClick={() =>
                setLines((before) => [
                  ...before,
                  {
                    id: Math.max(-1, ...before.map((one) => one.id)) + 1,
                    meter: before.some((one) => one.meter === 'usd' && one.window === 'month')
                      ? 'tokens'
                      : 'usd',
                    window: 'month',
                    amount: '',
                  },
                ])
              }
            >
              {t('adminPools.addLimit')}
            </Button>
          </div>
        </fieldset>
        <CheckField
          label={t('adminPools.sharesOutLabel')}
          hint={t('adminPools.sharesOutHint')}
          checked={sharesOut}
          onChange={(event) => setSharesOut(event.target.checked)}
        />
        <TextArea
          label={t('adminAllocations.reason')}
          hint={t('adminAllocations.reasonHint')}
          rows={2}
          maxLength={500}
          value={reason}
          error={fieldError(save.error, 'reason')}
          onChange={(event) => setReason(event.target.value)}
        />
        <DialogActions>
          {pool && pool.allocations > 0 && (
            <span className="mr-auto">
              <LinkButton look="quiet" to="/admin/allocations" search={{ pool_id: pool.id }}>
                {t('adminPools.allocations', { count: pool.allocations })}
              </LinkButton>
            </span>
          )}
          <Button onClick={onClose}>{t('common.cancel')}</Button>
          <Button type="submit" look="main" busy={save.isPending}>
            {pool ? t('common.save') : t('adminPools.add')}
          </Button>
        </DialogActions>
      </form>
    </Dialog>
  )
}
