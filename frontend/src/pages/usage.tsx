/** Usage: what was spent on what, as a chart and as the table that it is drawn from. */
import { useQuery } from '@tanstack/react-query'
import { useNavigate, useSearch } from '@tanstack/react-router'
import { Suspense, lazy } from 'react'

import { type Dimension, type UsageRow, myAllocationsQuery, myUsageQuery } from '@/api/queries'
import { useWords } from '@/i18n'
import { formatCount, sumUsd } from '@/lib/money'
import { formatDay, isoDate } from '@/lib/time'
import { DownloadLink, TextLink } from '@/ui/button'
import { Choice, Filters } from '@/ui/filters'
import { Count, Money } from '@/ui/format'
import { Answered, Card, Empty, Loading, Page } from '@/ui/page'
import { DataTable } from '@/ui/table'
import { useUnits } from '@/ui/units'

const Chart = lazy(() => import('@/ui/chart'))

const GROUPS = ['day', 'model', 'endpoint', 'key'] as const satisfies readonly Dimension[]
type Group = (typeof GROUPS)[number]

const RANGES = ['month', 'week', 'today', 'days30', 'days90'] as const
type Range = (typeof RANGES)[number]

const DAYS: Partial<Record<Range, number>> = { today: 1, week: 7, days30: 30, days90: 90 }
const DAY_MS = 86_400_000

/** The first date of a range; undefined: the start of this month, as the server tells it. */
function since(range: Range): string | undefined {
  const days = DAYS[range]
  return days === undefined ? undefined : isoDate(new Date(Date.now() - (days - 1) * DAY_MS), 'UTC')
}

interface Search {
  by?: Group
  range?: Range
  allocation_id?: string
}

export default function Usage() {
  const { t, locale } = useWords()
  const search: Search = useSearch({ strict: false })
  const by = GROUPS.find((one) => one === search.by) ?? 'day'
  const range = RANGES.find((one) => one === search.range) ?? 'month'
  const navigate = useNavigate()
  const show = (changed: Search) =>
    void navigate({ to: '/usage', search: { ...search, ...changed } as never, replace: true })
  const filters = { from: since(range), allocation_id: search.allocation_id || undefined }
  const allocations = useQuery(myAllocationsQuery)
  const usage = useQuery(myUsageQuery([by], filters))
  const csv = new URLSearchParams({ group_by: by })
  for (const [name, value] of Object.entries(filters)) if (value) csv.set(name, value)
  return (
    <Page
      title={t('nav.usage')}
      about={t('usage.about')}
      actions={
        <DownloadLink href={`/api/me/usage.csv?${csv}`}>CSV</DownloadLink>
      }
    >
      <Filters>
        <Choice
          all={false}
          label={t('usage.range')}
          value={range}
          onChange={(value) => show({ range: value as Range })}
          options={RANGES.map((one) => [one, t(`usage.ranges.${one}`)] as const)}
        />
        <Choice
          all={false}
          label={t('usage.by')}
          value={by}
          onChange={(value) => show({ by: value as Group })}
          options={GROUPS.map((one) => [one, t(`usage.groups.${one}`)] as const)}
        />
        <Choice
          label={t('usage.allocation')}
          value={search.allocation_id}
          onChange={(allocation_id) => show({ allocation_id })}
          options={allocations.data?.map((one) => [one.id, one.name] as const) ?? []}
        />
      </Filters>
      <Answered of={usage}>
        {({ items }) =>
          items.length === 0 ? (
            <Card>
              <Empty icon="chart" title={t('usage.none')}>
                {t('usage.noneHint')} <TextLink to="/keys">{t('usage.noneLink')}</TextLink>
              </Empty>
            </Card>
          ) : (
            <>
              <Totals rows={items} />
              <Card title={t(`usage.charts.${by}`)}>
                <Suspense fallback={<Loading />}>
                  <Chart
                    label={t('usage.chartLabel')}
                    upright={by === 'day'}
                    bars={(by === 'day' ? everyDay(items, filters.from) : ranked(items)).map((row) => ({
                      name: nameOf(row, by, locale) ?? t('usage.noName'),
                      usd: row.cost_usd,
                      detail: t('usage.calls', {
                        count: row.calls,
                        shown: formatCount(row.calls, locale),
                      }),
                      open: () => void navigate({ to: '/calls', search: behind(row, by, filters) as never }),
                    }))}
                  />
                </Suspense>
              </Card>
              <Rows rows={by === 'day' ? items.toReversed() : ranked(items)} by={by} filters={filters} />
            </>
          )
        }
      </Answered>
    </Page>
  )
}

interface Filters {
  from?: string | undefined
  allocation_id?: string | undefined
}

function nameOf(row: UsageRow, by: Group, locale: string): string | null {
  if (by === 'day') return formatDay(row.day!, locale)
  if (by === 'key') return row.key_name ?? null
  return (by === 'model' ? row.model : row.endpoint) ?? null
}

/** What the calls page is asked for to show the calls behind a row. */
function behind(row: UsageRow, by: Group, filters: Filters): Record<string, string | undefined> {
  if (by === 'day') return { ...filters, from: row.day!, to: dayAfter(row.day!) }
  if (by === 'key') return { ...filters, key_id: row.key_id ?? undefined }
  if (by === 'model') return { ...filters, model: row.model ?? undefined }
  return { ...filters, endpoint: row.endpoint ?? undefined }
}

const dayAfter = (day: string) => isoDate(new Date(Date.parse(day) + DAY_MS), 'UTC')

const ranked = (rows: readonly UsageRow[]) =>
  rows.toSorted((a, b) => Number(b.cost_usd) - Number(a.cost_usd) || b.calls - a.calls)

/** Days without a call have a place on the axis all the same. */
function everyDay(rows: readonly UsageRow[], from?: string): UsageRow[] {
  const known = new Map(rows.map((row) => [row.day!, row]))
  const today = isoDate(new Date(), 'UTC')
  const last = [...known.keys(), today].sort().at(-1)!
  const first = [...known.keys(), from ?? `${last.slice(0, 7)}-01`].sort()[0]!
  const empty = { calls: 0, refused_calls: 0, unpriced_calls: 0, tokens: 0, cost_usd: '0', units: {} }
  const all: UsageRow[] = []
  for (let day = first; day <= last; day = dayAfter(day)) {
    all.push(known.get(day) ?? { ...empty, day })
  }
  return all
}

function Totals({ rows }: { rows: UsageRow[] }) {
  const { t } = useWords()
  const sum = (field: 'calls' | 'tokens' | 'refused_calls' | 'unpriced_calls') =>
    rows.reduce((total, row) => total + row[field], 0)
  const tiles = [
    [t('usage.spent'), <Money key="usd" usd={sumUsd(rows.map((row) => row.cost_usd))} />],
    [t('usage.tokens'), <Count key="tokens" value={sum('tokens')} />],
    [t('usage.callsHead'), <Count key="calls" value={sum('calls')} />],
    [t('usage.refused'), <Count key="refused" value={sum('refused_calls')} />],
    ...(sum('unpriced_calls') > 0
      ? [[t('usage.unpriced'), <Count key="unpriced" value={sum('unpriced_calls')} />] as const]
      : []),
  ] as const
  return (
    <dl className="grid grid-cols-2 gap-px overflow-hidden rounded-xl border border-line bg-line shadow-card sm:flex">
      {tiles.map(([name, value]) => (
        <div key={name as string} className="flex-1 bg-card px-4 py-3 odd:last:col-span-2">
          <dt className="text-xs text-soft">{name}</dt>
          <dd className="text-lg font-semibold">{value}</dd>
        </div>
      ))}
    </dl>
  )
}

function Rows({ rows, by, filters }: { rows: UsageRow[]; by: Group; filters: Filters }) {
  const { t, locale } = useWords()
  const units = useUnits()
  return (
    <Card flush>
      <DataTable
        caption={t(`usage.charts.${by}`)}
        rows={rows}
        id={(row) => row.day ?? row.key_id ?? row.model ?? row.endpoint ?? 'none'}
        columns={[
          {
            name: 'group',
            head: t(`usage.groups.${by}`),
            title: true,
            cell: (row) => {
              const name = nameOf(row, by, locale)
              if (name === null) return <span className="text-soft">{t('usage.noName')}</span>
              return (
                <TextLink
                  to="/calls"
                  search={behind(row, by, filters)}
                  aria-label={t('usage.open', { name })}
                >
                  <span className={by === 'day' ? 'whitespace-nowrap' : ''}>{name}</span>
                </TextLink>
              )
            },
          },
          {
            name: 'usd',
            head: t('usage.spent'),
            end: true,
            cell: (row) => (
              <span className="inline-flex flex-wrap items-baseline gap-x-2 md:justify-end">
                <Money usd={row.cost_usd} />
                {row.unpriced_calls > 0 && (
                  <span className="text-xs text-near-ink">
                    {t('usage.plusUnpriced', { count: row.unpriced_calls })}
                  </span>
                )}
              </span>
            ),
          },
          { name: 'tokens', head: t('usage.tokens'), end: true, cell: (row) => <Count value={row.tokens} /> },
          {
            name: 'units',
            head: t('usage.units'),
            wide: true,
            optional: (row) => Object.keys(row.units).length > 0,
            cell: (row) => <span className="text-xs text-soft">{units(row.units)}</span>,
          },
          { name: 'calls', head: t('usage.callsHead'), end: true, cell: (row) => <Count value={row.calls} /> },
          {
            name: 'refused',
            head: t('usage.refused'),
            end: true,
            optional: (row) => row.refused_calls > 0,
            cell: (row) => <Count value={row.refused_calls} />,
          },
        ]}
      />
    </Card>
  )
}
