/** Allocations, for admins: who may use what, what is left of it, and every way to change that. */
import { useInfiniteQuery, useMutation, useQuery } from '@tanstack/react-query'
import { Suspense, lazy, useRef, useState } from 'react'

import {
  type AllocationRow,
  type AllocationsAsked,
  type MemberRow,
  type PoolRow,
  SPEND,
  foundAllocationsQuery,
  membersQuery,
  poolsQuery,
} from '@/api/admin-spend'
import { api, ok } from '@/api/client'
import { useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { useSession } from '@/shell/gate'
import { useAddress } from '@/ui/address'
import { Button, DownloadLink, IconButton, TextLink } from '@/ui/button'
import { Confirm } from '@/ui/dialog'
import { SelectField, TextArea } from '@/ui/field'
import { useAmount } from '@/ui/format'
import { useLimitName } from '@/ui/limit-name'
import { Menu, MenuItem, MenuRule } from '@/ui/menu'
import { Meter, StateBadge, ToneBadge } from '@/ui/meter'
import { Answered, Card, Empty, Page } from '@/ui/page'
import { SearchField } from '@/ui/search-field'
import { type Column, DataTable } from '@/ui/table'
import { toast } from '@/ui/toast'

// What opens over the page is loaded once it is asked for.
const CapsDialog = lazy(async () => ({ default: (await import('./admin-caps')).CapsDialog }))
const BulkDialog = lazy(async () => ({ default: (await import('./admin-bulk')).BulkDialog }))
const ImportDialog = lazy(async () => ({ default: (await import('./admin-bulk')).ImportDialog }))
const AllocationDialog = lazy(async () => ({
  default: (await import('./admin-allocation-form')).AllocationDialog,
}))

const STATES = ['ok', 'near', 'critical', 'exhausted', 'paused', 'quarantined', 'revoked'] as const
const SORTS = ['newest', 'name', 'spend', 'tight'] as const
type Status = AllocationRow['status']

type Address = Record<string, string | undefined>
const NARROWING = ['q', 'id', 'state', 'pool_id', 'member_id'] as const
const NOTHING = Object.fromEntries(NARROWING.map((name) => [name, undefined]))

/** What the address asks for, as the server is asked for it. */
function askedOf(address: Address): AllocationsAsked {
  const { q, id, pool_id, member_id } = address
  const state = STATES.find((one) => one === address.state)
  const sort = SORTS.find((one) => one === address.sort)
  const found: AllocationsAsked = {
    q: id || q,
    pool_id,
    member_id,
    sort,
    // Whoever is not active is found by that, and the others by how near to a cap they are.
    ...(state === 'paused' || state === 'quarantined' || state === 'revoked'
      ? { status: state }
      : { state }),
  }
  return Object.fromEntries(Object.entries(found).filter(([, value]) => value))
}

interface Known {
  members: Map<string, MemberRow>
  pools: Map<string, PoolRow>
}

export default function AdminAllocations() {
  const { t } = useWords()
  const admin = useSession().member.role === 'admin'
  const [address] = useAddress()
  const allocations = useInfiniteQuery(foundAllocationsQuery(askedOf(address)))
  const filtered = NARROWING.some((name) => address[name])
  const members = useQuery(membersQuery)
  const pools = useQuery(poolsQuery)
  const [adding, setAdding] = useState(false)
  const [importing, setImporting] = useState(false)
  const known: Known = {
    members: new Map(members.data?.map((one) => [one.id, one])),
    pools: new Map(pools.data?.map((one) => [one.id, one])),
  }
  return (
    <Page
      title={t('nav.adminAllocations')}
      about={t('adminAllocations.about')}
      actions={
        <>
          {admin && (
            <>
              <Button icon="up" onClick={() => setImporting(true)}>
                {t('adminAllocations.import.action')}
              </Button>
              <Button icon="plus" look="main" onClick={() => setAdding(true)}>
                {t('adminAllocations.add')}
              </Button>
            </>
          )}
        </>
      }
    >
      <Answered of={allocations}>
        {({ pages: found }) => {
          const rows = found.flatMap((one) => one.items)
          return rows.length === 0 && !filtered && !allocations.isPlaceholderData ? (
            <Card>
              <Empty
                icon="wallet"
                title={t('adminAllocations.none')}
                actions={
                  admin && (
                    <Button icon="plus" look="main" onClick={() => setAdding(true)}>
                      {t('adminAllocations.add')}
                    </Button>
                  )
                }
              >
                {t('adminAllocations.noneHint')}
              </Empty>
            </Card>
          ) : (
            <Rows
              rows={rows}
              known={known}
              admin={admin}
              more={allocations.hasNextPage ? () => void allocations.fetchNextPage() : undefined}
              busy={allocations.isFetchingNextPage}
            />
          )
        }}
      </Answered>
      <Suspense>
        {adding && <AllocationDialog onClose={() => setAdding(false)} />}
        {importing && <ImportDialog onClose={() => setImporting(false)} />}
      </Suspense>
    </Page>
  )
}

type Opened =
  | { what: 'caps' | 'edit'; row: AllocationRow }
  | { what: 'status'; row: AllocationRow; status: Status }
  | { what: 'bulk'; rows: AllocationRow[] }

function Rows({
  rows,
  known,
  admin,
  more,
  busy,
}: {
  rows: AllocationRow[]
  known: Known
  admin: boolean
  /** Asks for the next page; undefined: there is none. */
  more: (() => void) | undefined
  busy: boolean
}) {
  const { t, locale } = useWords()
  const [, change] = useAddress()
  const [opened, setOpened] = useState<Opened | null>(null)
  // What is chosen stays so while something else is searched for.
  const [chosen, setChosen] = useState<ReadonlyMap<string, AllocationRow>>(new Map())
  const marked = [...chosen.values()]
  const all = rows.length > 0 && rows.every((row) => chosen.has(row.id))
  const choose = (some: AllocationRow[], on: boolean) =>
    setChosen((before) => {
      const next = new Map(before)
      for (const row of some) on ? next.set(row.id, row) : next.delete(row.id)
      return next
    })
  const columns: Column<AllocationRow>[] = [
    ...(admin
      ? [
          {
            name: 'choose',
            mark: true,
            head: (
              <input
                type="checkbox"
                aria-label={t('adminAllocations.chooseAll')}
                className="size-4 accent-(--accent) max-md:hidden"
                checked={all}
                onChange={(event) => choose(rows, event.target.checked)}
              />
            ),
            cell: (row: AllocationRow) => (
              <input
                type="checkbox"
                aria-label={t('adminAllocations.choose', { name: row.name })}
                className="size-4 accent-(--accent)"
                checked={chosen.has(row.id)}
                onChange={(event) => choose([row], event.target.checked)}
              />
            ),
          },
        ]
      : []),
    {
      name: 'name',
      head: t('adminAllocations.allocation'),
      title: true,
      cell: (row) => <Named row={row} known={known} />,
    },
    {
      name: 'spend',
      head: t('adminAllocations.spend'),
      cell: (row) => (
        <Bar
          row={row}
          meter="usd"
          used={row.cost_used_this_month}
          held={row.cost_held}
          amount={row.effective_cost_usd_per_month}
        />
      ),
    },
    {
      name: 'tokens',
      head: t('adminAllocations.tokens'),
      cell: (row) => (
        <Bar
          row={row}
          meter="tokens"
          used={row.tokens_used_this_month}
          held={row.tokens_held}
          amount={row.effective_tokens_per_month}
        />
      ),
    },
    {
      name: 'state',
      head: t('adminAllocations.state'),
      cell: (row) => <State row={row} />,
    },
    {
      name: 'binds',
      head: t('adminAllocations.binds'),
      cell: (row) => <Binds row={row} />,
    },
    {
      name: 'actions',
      head: '',
      actions: true,
      end: true,
      wide: true,
      cell: (row) => <Actions row={row} admin={admin} open={setOpened} />,
    },
  ]
  const close = () => setOpened(null)
  return (
    <>
      <Filters known={known} />
      {marked.length > 0 && (
        <div
          role="region"
          aria-label={t('adminAllocations.chosenLabel')}
          className="sticky top-14 z-20 flex flex-wrap items-center gap-2 rounded-xl border border-line bg-accent-wash px-4 py-2 text-accent-strong shadow-card"
        >
          <strong className="mr-auto font-semibold" role="status">
            {t('adminAllocations.chosen', { count: marked.length })}
          </strong>
          <Button onClick={() => setChosen(new Map())}>{t('adminAllocations.unchoose')}</Button>
          <Button
            look="main"
            icon="edit"
            onClick={() => setOpened({ what: 'bulk', rows: marked })}
          >
            {t('adminAllocations.bulk.action')}
          </Button>
        </div>
      )}
      <Card flush>
        {rows.length === 0 ? (
          <Empty
            icon="search"
            title={t('adminAllocations.notFound')}
            actions={
              <Button onClick={() => change(NOTHING)}>{t('adminAllocations.clear')}</Button>
            }
          >
            {t('adminAllocations.notFoundHint')}
          </Empty>
        ) : (
          <DataTable
            caption={t('nav.adminAllocations')}
            rows={rows}
            id={(row) => row.id}
            columns={columns}
          />
        )}
      </Card>
      <div className="flex flex-wrap items-center justify-between gap-2">
        <p className="text-soft" role="status">
          {t(more ? 'adminAllocations.shownFirst' : 'adminAllocations.shown', {
            count: rows.length,
            shown: new Intl.NumberFormat(locale).format(rows.length),
          })}
        </p>
        {more && (
          <Button icon="down" busy={busy} onClick={more}>
            {t('common.more')}
          </Button>
        )}
      </div>
      <Suspense>
        {opened?.what === 'caps' && <CapsDialog row={opened.row} onClose={close} />}
        {opened?.what === 'edit' && <AllocationDialog row={opened.row} onClose={close} />}
        {opened?.what === 'status' && (
          <StatusDialog row={opened.row} status={opened.status} onClose={close} />
        )}
        {opened?.what === 'bulk' && (
          <BulkDialog
            rows={opened.rows}
            onClose={close}
            onDone={() => {
              setChosen(new Map())
              close()
            }}
          />
        )}
      </Suspense>
    </>
  )
}

const byText = (a: string, b: string) => a.localeCompare(b)

function Filters({ known }: { known: Known }) {
  const { t } = useWords()
  const [address, change] = useAddress()
  const set = (name: string) => (event: { target: { value: string } }) =>
    change({ [name]: event.target.value, id: undefined })
  const filtered = NARROWING.some((name) => address[name])
  const members = [...known.members.values()].sort((a, b) => byText(a.display_name, b.display_name))
  const pools = [...known.pools.values()].sort((a, b) => byText(a.name, b.name))
  return (
    <form
      role="search"
      aria-label={t('adminAllocations.filter')}
      onSubmit={(event) => event.preventDefault()}
      className="grid grid-cols-2 items-end gap-3 md:grid-cols-3 xl:grid-cols-[1.3fr_1fr_1fr_1fr_1.15fr_auto]"
    >
      <SearchField
        label={t('adminAllocations.search')}
        placeholder={t('adminAllocations.searchHint')}
        value={address.q ?? ''}
        onAsk={(q) => change({ q, id: undefined })}
        className="max-md:col-span-2"
      />
      <SelectField
        label={t('adminAllocations.state')}
        value={address.state ?? ''}
        onChange={set('state')}
      >
        <option value="">{t('common.all')}</option>
        {STATES.map((one) => (
          <option key={one} value={one}>
            {t(`adminAllocations.states.${one}`)}
          </option>
        ))}
      </SelectField>
      <SelectField
        label={t('adminAllocations.pool')}
        value={address.pool_id ?? ''}
        onChange={set('pool_id')}
      >
        <option value="">{t('common.all')}</option>
        <option value="none">{t('adminAllocations.noPool')}</option>
        {pools.map((one) => (
          <option key={one.id} value={one.id}>
            {one.name}
          </option>
        ))}
      </SelectField>
      <SelectField
        label={t('adminAllocations.member')}
        value={address.member_id ?? ''}
        onChange={set('member_id')}
      >
        <option value="">{t('common.all')}</option>
        {members.map((one) => (
          <option key={one.id} value={one.id}>
            {one.display_name}
          </option>
        ))}
      </SelectField>
      <SelectField
        label={t('adminAllocations.sort')}
        value={address.sort ?? 'newest'}
        onChange={set('sort')}
      >
        {SORTS.map((one) => (
          <option key={one} value={one}>
            {t(`adminAllocations.sorts.${one}`)}
          </option>
        ))}
      </SelectField>
      <div className="flex flex-wrap gap-2 max-xl:col-span-full">
        <Export asked={askedOf(address)} />
        {filtered && (
          <Button look="quiet" icon="close" onClick={() => change(NOTHING)}>
            {t('adminAllocations.clear')}
          </Button>
        )}
      </div>
    </form>
  )
}

/** What is found, all of it, as CSV: the same file that can be changed and imported again. */
function Export({ asked: { sort: _, ...asked } }: { asked: AllocationsAsked }) {
  const { t } = useWords()
  return (
    <DownloadLink
      href={`/api/admin/allocations.csv?${new URLSearchParams(asked as Record<string, string>)}`}
    >
      {t('adminAllocations.export')}
    </DownloadLink>
  )
}

function Named({ row, known }: { row: AllocationRow; known: Known }) {
  const { t } = useWords()
  const member = known.members.get(row.member_id)
  const pool = row.pool_id ? known.pools.get(row.pool_id) : undefined
  return (
    <span className="flex min-w-0 flex-col md:max-w-60">
      <span className="font-semibold">{row.name}</span>
      <span className="text-xs font-normal text-soft" title={member?.email}>
        {member?.display_name ?? '…'}
        {row.service && ` · ${t('adminAllocations.service')}`}
      </span>
      {pool && (
        <span className="text-xs font-normal">
          <TextLink to="/admin/pools" search={{ id: pool.id }}>
            {pool.name}
          </TextLink>
        </span>
      )}
    </span>
  )
}

function Bar({
  row,
  ...standing
}: {
  row: AllocationRow
  meter: 'usd' | 'tokens'
  used: string | number
  held: string | number
  amount: string | number | null
}) {
  const { t } = useWords()
  const raised = row.top_ups.some((one) => one.meter === standing.meter)
  return (
    <span className="block w-[37vw] md:w-36 xl:w-40">
      <Meter
        small
        label={raised ? t('adminAllocations.raised') : ''}
        name={`${row.name}: ${t(`meters.${standing.meter}`)}`}
        paused={row.status !== 'active'}
        {...standing}
      />
    </span>
  )
}

function State({ row }: { row: AllocationRow }) {
  const { t } = useWords()
  if (row.status === 'active' || row.status === 'paused') return <StateBadge state={row.state} />
  return (
    <ToneBadge
      tone={row.status === 'revoked' ? 'bad' : 'idle'}
      icon={row.status === 'revoked' ? 'stop' : 'alert'}
      label={t(`adminAllocations.states.${row.status}`)}
    />
  )
}

function Binds({ row }: { row: AllocationRow }) {
  const { t } = useWords()
  const shown = useAmount()
  const limitName = useLimitName()
  const { binds } = row
  if (!binds) return <span className="text-soft">{t('adminAllocations.unbound')}</span>
  return (
    <span className="block text-xs md:max-w-40">
      {binds.owner === 'allocation'
        ? limitName({ meter: binds.meter, window: binds.window })
        : limitName(binds, binds.owner_name)}
      <span className="block text-soft">
        {t('meter.left', { amount: shown(binds.meter, binds.remaining, 'down') })}
      </span>
    </span>
  )
}

function Actions({
  row,
  admin,
  open,
}: {
  row: AllocationRow
  admin: boolean
  open: (what: Opened) => void
}) {
  const { t } = useWords()
  const trigger = useRef<HTMLButtonElement>(null)
  if (!admin) return null
  // The menu's item goes away with the menu: what opens gives focus back to its button.
  const from = (what: Opened) => () => {
    trigger.current?.focus()
    open(what)
  }
  const to = (status: Status) => from({ what: 'status', row, status })
  return (
    <span className="flex items-center gap-1 md:justify-end">
      <Button
        className="whitespace-nowrap"
        aria-label={t('adminAllocations.capsOf', { name: row.name })}
        onClick={() => open({ what: 'caps', row })}
      >
        {t('adminAllocations.caps.action')}
      </Button>
      <Menu
        trigger={
          <IconButton ref={trigger} icon="dots" label={t('adminAllocations.actions', { name: row.name })} />
        }
      >
        <MenuItem icon="edit" onSelect={from({ what: 'edit', row })}>
          {t('adminAllocations.edit')}
        </MenuItem>
        <MenuRule />
        {row.status !== 'active' && (
          <MenuItem icon="check" onSelect={to('active')}>
            {t('adminAllocations.to.active')}
          </MenuItem>
        )}
        {row.status !== 'paused' && row.status !== 'revoked' && (
          <MenuItem icon="pause" onSelect={to('paused')}>
            {t('adminAllocations.to.paused')}
          </MenuItem>
        )}
        {row.status !== 'quarantined' && row.status !== 'revoked' && (
          <MenuItem icon="alert" onSelect={to('quarantined')}>
            {t('adminAllocations.to.quarantined')}
          </MenuItem>
        )}
        {row.status !== 'revoked' && (
          <MenuItem icon="stop" onSelect={to('revoked')}>
            {t('adminAllocations.to.revoked')}
          </MenuItem>
        )}
      </Menu>
    </span>
  )
}

/** Pausing, quarantining, revoking, and taking that back: with its effect and a reason. */
function StatusDialog({
  row,
  status,
  onClose,
}: {
  row: AllocationRow
  status: Status
  onClose: () => void
}) {
  const { t } = useWords()
  const refresh = useRefresh()
  const [reason, setReason] = useState('')
  const set = useMutation({
    mutationFn: () =>
      ok(
        api.PATCH('/api/admin/allocations/{id}', {
          params: { path: { id: row.id } },
          body: { status, reason: reason.trim() || null },
        }),
      ),
    onSuccess: async () => {
      toast(t(`adminAllocations.toDone.${status}`, { name: row.name }))
      await refresh(SPEND)
    },
  })
  return (
    <Confirm
      open
      onClose={onClose}
      title={t(`adminAllocations.toTitle.${status}`, { name: row.name })}
      look={status === 'active' ? 'main' : 'destroy'}
      action={t(`adminAllocations.to.${status}`)}
      onConfirm={() => set.mutateAsync()}
    >
      <p>{t(`adminAllocations.toEffect.${status}`)}</p>
      <TextArea
        label={t('adminAllocations.reason')}
        hint={t('adminAllocations.reasonHint')}
        maxLength={500}
        rows={2}
        value={reason}
        onChange={(event) => setReason(event.target.value)}
      />
    </Confirm>
  )
}
