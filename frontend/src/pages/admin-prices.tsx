/** Prices: what models cost, which have no price yet, and what public lists suggest. */
import { useQuery } from '@tanstack/react-query'

import {
  type Model,
  type Price,
  type Suggestion,
  modelsQuery,
  pricesQuery,
  suggestionsQuery,
  unpricedQuery,
} from '@/api/admin-setup'
import { useWords } from '@/i18n'
import { LinkButton } from '@/ui/button'
import { TextField } from '@/ui/field'
import { Filters } from '@/ui/filters'
import { Count, When } from '@/ui/format'
import { ToneBadge } from '@/ui/meter'
import { Answered, Card, Empty, Page, Problem } from '@/ui/page'
import { type Column, DataTable } from '@/ui/table'

import { ModelPrices } from './model-prices'
import { Rates } from './rates'
import { useAsked, useMayWrite } from './setup-parts'

export default function AdminPrices() {
  const { asked } = useAsked('/admin/prices')
  return asked.model ? <ModelPrices key={asked.model} slug={asked.model} /> : <AllPrices />
}

interface Row {
  model: Model
  price: Price | undefined
  versions: number
  unpriced: number
  suggestion: Suggestion | undefined
}

function AllPrices() {
  const { t } = useWords()
  const models = useQuery(modelsQuery)
  const prices = useQuery(pricesQuery())
  const unpriced = useQuery(unpricedQuery)
  const suggestions = useQuery(suggestionsQuery())
  const { asked, ask } = useAsked('/admin/prices')
  const sought = (asked.q ?? '').toLowerCase()
  return (
    <Page title={t('nav.adminPrices')} about={t('adminPrices.about')}>
      <Answered of={models}>
        {(all) => (
          <Answered of={prices}>
            {(versions) => {
              const rows = all.map((model): Row => {
                const own = versions.filter((one) => one.model === model.slug)
                return {
                  model,
                  price: own.find((one) => one.in_force),
                  versions: own.length,
                  unpriced: unpriced.data?.get(model.slug) ?? 0,
                  suggestion: suggestions.data?.find((one) => one.model === model.slug),
                }
              })
              const wanting = rows
                .filter((row) => row.price === undefined || row.unpriced > 0)
                .sort((one, other) => other.unpriced - one.unpriced)
              const priced = rows.filter(
                (row) => row.price !== undefined && row.model.slug.toLowerCase().includes(sought),
              )
              if (rows.length === 0) return <NoModels />
              return (
                <>
                  {/* Without them prices can be set all the same. */}
                  {unpriced.error && <Problem error={unpriced.error} />}
                  {suggestions.error && <Problem error={suggestions.error} />}
                  {wanting.length > 0 && <Wanting rows={wanting} />}
                  <Card title={t('adminPrices.inForce')} flush>
                    {rows.every((row) => row.price === undefined) ? (
                      <Empty icon="tag" title={t('adminPrices.noPrices')}>
                        {t('adminPrices.noPricesHint')}
                      </Empty>
                    ) : (
                      <>
                        <Filters framed>
                          <TextField
                            type="search"
                            label={t('adminSetup.search')}
                            value={asked.q ?? ''}
                            onChange={(event) => ask({ q: event.target.value })}
                          />
                        </Filters>
                        {priced.length === 0 ? (
                          <Empty icon="search" title={t('adminSetup.nothingFound')} />
                        ) : (
                          <Priced rows={priced} />
                        )}
                      </>
                    )}
                  </Card>
                </>
              )
            }}
          </Answered>
        )}
      </Answered>
    </Page>
  )
}

function NoModels() {
  const { t } = useWords()
  return (
    <Card>
      <Empty
        icon="tag"
        title={t('adminModels.noModels')}
        actions={
          <LinkButton look="main" to="/admin/models">
            {t('nav.adminModels')}
          </LinkButton>
        }
      >
        {t('adminPrices.noModelsHint')}
      </Empty>
    </Card>
  )
}

function useModelColumn(): Column<Row> {
  const { t } = useWords()
  return {
    name: 'model',
    head: t('adminModels.model'),
    title: true,
    cell: (row) => <span className="font-mono text-[0.8125rem] font-semibold">{row.model.slug}</span>,
  }
}

/** What calls cost nobody knows: the most called first. */
function Wanting({ rows }: { rows: Row[] }) {
  const { t } = useWords()
  const writes = useMayWrite()
  const model = useModelColumn()
  return (
    <Card
      title={
        <span className="inline-flex items-center gap-2">
          {t('adminPrices.wanting')}
          <ToneBadge tone="warn" icon="warning" label={String(rows.length)} />
        </span>
      }
      flush
    >
      <p className="border-b border-line px-4 py-2.5 text-soft">{t('adminPrices.wantingHint')}</p>
      <DataTable
        caption={t('adminPrices.wanting')}
        rows={rows}
        id={(row) => row.model.slug}
        columns={[
          model,
          {
            name: 'why',
            head: t('adminPrices.state'),
            cell: (row) =>
              row.price === undefined ? (
                <ToneBadge tone="warn" icon="tag" label={t('adminPrices.noPrice')} />
              ) : (
                <ToneBadge tone="idle" icon="clock" label={t('adminPrices.tooLate')} />
              ),
          },
          {
            name: 'calls',
            head: t('adminPrices.unpricedCalls'),
            end: true,
            cell: (row) => <Count value={row.unpriced} />,
          },
          {
            name: 'suggestion',
            head: t('adminPrices.suggestion'),
            cell: (row) => <SuggestionState suggestion={row.suggestion} />,
          },
          {
            name: 'open',
            head: '',
            actions: true,
            end: true,
            cell: (row) => (
              <LinkButton
                look={writes && row.price === undefined ? 'main' : 'plain'}
                to="/admin/prices"
                search={{ model: row.model.slug }}
              >
                {!writes
                  ? t('adminPrices.open')
                  : row.price === undefined
                    ? t('adminModels.setPrice')
                    : t('adminPrices.repriceShort')}
                <span className="sr-only">: {row.model.slug}</span>
              </LinkButton>
            ),
          },
        ]}
      />
    </Card>
  )
}

function Priced({ rows }: { rows: Row[] }) {
  const { t } = useWords()
  const model = useModelColumn()
  return (
    <DataTable
      caption={t('adminPrices.inForce')}
      rows={rows}
      id={(row) => row.model.slug}
      columns={[
        model,
        { name: 'rates', wide: true, head: t('adminPrices.rates'), cell: (row) => <Rates rates={row.price!.rates} /> },
        { name: 'since', head: t('adminPrices.since'), cell: (row) => <When at={row.price!.effective_from} /> },
        { name: 'versions', head: t('adminPrices.versions'), end: true, cell: (row) => row.versions },
        {
          name: 'suggestion',
          head: t('adminPrices.suggestion'),
          cell: (row) => <SuggestionState suggestion={row.suggestion} />,
        },
        {
          name: 'open',
          head: '',
          actions: true,
          end: true,
          cell: (row) => (
            <LinkButton to="/admin/prices" search={{ model: row.model.slug }}>
              {t('adminPrices.open')}
              <span className="sr-only">: {row.model.slug}</span>
            </LinkButton>
          ),
        },
      ]}
    />
  )
}

/** What public lists say, in a word. */
function SuggestionState({ suggestion }: { suggestion: Suggestion | undefined }) {
  const { t } = useWords()
  if (suggestion === undefined) return null
  switch (suggestion.state) {
    case 'unknown':
      return <span className="text-soft">{t('adminPrices.suggestions.unknown')}</span>
    case 'same':
      return <ToneBadge tone="good" icon="check" label={t('adminPrices.suggestions.same')} />
    default:
      return (
        <ToneBadge tone="warn" icon="wand" label={t(`adminPrices.suggestions.${suggestion.state}`)} />
      )
  }
}
