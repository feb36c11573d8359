/** One model's prices: what is in force, what lists suggest, a new version, and calls priced again. */
import { zodResolver } from '@hookform/resolvers/zod'
import { useQuery } from '@tanstack/react-query'
import { useState } from 'react'
import { useFieldArray } from 'react-hook-form'
import * as z from 'zod/mini'

import {
  type Price,
  type Rate,
  type Suggestion,
  modelsQuery,
  pricesQuery,
  suggestionsQuery,
  unpricedQuery,
} from '@/api/admin-setup'
import { api, ok } from '@/api/client'
import { useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { faultWords } from '@/i18n/errors'
import { formatCount, readCount } from '@/lib/money'
import { Button, IconButton, LinkButton } from '@/ui/button'
import { SelectField, TextField } from '@/ui/field'
import { When } from '@/ui/format'
import { Icon } from '@/ui/icons'
import { ToneBadge } from '@/ui/meter'
import { Answered, Card, Empty, Page, Problem } from '@/ui/page'
import { DataTable } from '@/ui/table'
import { toast } from '@/ui/toast'

import { Rates, UNITS, inOrder, useRateText } from './rates'
import { Reprice } from './reprice'
import { EditorForm, useEditor, useMayWrite } from './setup-parts'

export function ModelPrices({ slug }: { slug: string }) {
  const { t } = useWords()
  const writes = useMayWrite()
  const models = useQuery(modelsQuery)
  const prices = useQuery(pricesQuery(slug))
  const suggestions = useQuery({ ...suggestionsQuery(slug), enabled: models.data?.some((one) => one.slug === slug) ?? false })
  const unpriced = useQuery(unpricedQuery)
  // The form starts again with what was taken over; the count tells one taking from the next.
  const [taken, setTaken] = useState<{ rates: Rate[]; times: number }>({ rates: [], times: 0 })
  const suggestion = suggestions.data?.[0]
  const calls = unpriced.data?.get(slug) ?? 0
  return (
    <Page
      title={t('adminPrices.title', { name: slug })}
      about={calls > 0 ? t('adminPrices.unpricedOf', { count: calls }) : t('adminPrices.aboutModel')}
      actions={<LinkButton to="/admin/prices">{t('adminPrices.all')}</LinkButton>}
    >
      {models.data && !models.data.some((one) => one.slug === slug) ? (
        <Card>
          <Empty icon="search" title={t('adminPrices.noSuchModel')} />
        </Card>
      ) : (
        <Answered of={prices}>
          {(versions) => {
            const now = versions.find((one) => one.in_force)
            return (
              <>
                {unpriced.error && <Problem error={unpriced.error} />}
                {suggestions.error && <Problem error={suggestions.error} />}
                {suggestion && suggestion.state !== 'unknown' && (
                  <Suggested
                    suggestion={suggestion}
                    onTake={writes ? () => setTaken({ rates: suggestion.rates, times: taken.times + 1 }) : null}
                  />
                )}
                {writes && (
                  <Card title={t('adminPrices.newVersion')}>
                    <PriceForm
                      key={`${taken.times} ${now?.id}`}
                      slug={slug}
                      rates={taken.rates.length ? taken.rates : (now?.rates ?? [])}
                      onDone={() => setTaken({ rates: [], times: taken.times + 1 })}
                    />
                  </Card>
                )}
                <History versions={versions} />
                <Reprice slug={slug} unpriced={calls} />
              </>
            )
          }}
        </Answered>
      )}
    </Page>
  )
}

function Suggested({ suggestion, onTake }: { suggestion: Suggestion; onTake: (() => void) | null }) {
  const { t } = useWords()
  const text = useRateText()
  const marks = { unchanged: 'check', changed: 'edit', added: 'plus', removed: 'trash' } as const
  return (
    <Card
      title={t('adminPrices.suggestion')}
      flush
      actions={
        onTake &&
        suggestion.state !== 'same' && (
          <Button icon="wand" onClick={onTake}>
            {t('adminPrices.take')}
          </Button>
        )
      }
    >
      <div className="border-b border-line px-4 py-2.5 text-soft">
        {suggestion.state === 'same' ? t('adminPrices.sameAsSuggested') : t('adminPrices.suggestedHint')}{' '}
        {suggestion.source && t('adminPrices.source', { source: suggestion.source })}
        {suggestion.notes.length > 0 && (
          <p>{suggestion.notes.map((one) => faultWords(one.code, one.values) ?? one.message).join(' ')}</p>
        )}
      </div>
      <DataTable
        caption={t('adminPrices.suggestion')}
        rows={inOrder(suggestion.differences)}
        id={(row) => row.unit}
        columns={[
          { name: 'unit', head: t('adminPrices.unit'), title: true, cell: (row) => t(`adminPrices.units.${row.unit}`) },
          {
            name: 'now',
            head: t('adminPrices.now'),
            cell: (row) => (row.current ? text(row.current) : <span className="text-soft">{t('adminSetup.none')}</span>),
          },
          {
            name: 'suggested',
            head: t('adminPrices.suggested'),
            cell: (row) =>
              row.suggested ? (
                <strong className={row.change === 'unchanged' ? 'font-normal' : 'font-semibold'}>
                  {text(row.suggested)}
                </strong>
              ) : (
                <span className="text-soft">{t('adminSetup.none')}</span>
              ),
          },
          {
            name: 'change',
            head: t('adminPrices.change'),
            cell: (row) => (
              <span
                className={`inline-flex items-center gap-1.5 ${row.change === 'unchanged' ? 'text-soft' : 'font-medium'}`}
              >
                <Icon name={marks[row.change]} />
                {t(`adminPrices.changes.${row.change}`)}
              </span>
            ),
          },
        ]}
      />
    </Card>
  )
}

function History({ versions }: { versions: Price[] }) {
  const { t } = useWords()
  const sorted = [...versions].sort((one, other) => other.effective_from.localeCompare(one.effective_from))
  const now = new Date().toISOString()
  return (
    <Card title={t('adminPrices.history')} flush>
      {versions.length === 0 ? (
        <Empty icon="tag" title={t('adminPrices.noPrice')}>
          {t('adminPrices.noPriceHint')}
        </Empty>
      ) : (
        <DataTable
          caption={t('adminPrices.history')}
          rows={sorted}
          id={(row) => row.id}
          columns={[
            {
              name: 'from',
              head: t('adminPrices.effectiveFrom'),
              title: true,
              cell: (row) => (
                <span className="inline-flex flex-wrap items-center gap-2">
                  <When at={row.effective_from} utc />
                  {row.in_force ? (
                    <ToneBadge tone="good" icon="check" label={t('adminPrices.isInForce')} />
                  ) : row.effective_from > now ? (
                    <ToneBadge tone="idle" icon="clock" label={t('adminPrices.ahead')} />
                  ) : null}
                </span>
              ),
            },
            { name: 'rates', wide: true, head: t('adminPrices.rates'), cell: (row) => <Rates rates={row.rates} /> },
            { name: 'added', head: t('adminSetup.added'), cell: (row) => <When at={row.created_at} /> },
          ]}
        />
      )}
    </Card>
  )
}

/** An exact price, as the API takes it; null if it is none. */
export function readRate(text: string): string | null {
  const bare = text.trim().replace(/^(US)?\$\s*/i, '').replace(/,(?=\d{3}(\D|$))/g, '')
  return /^\d{1,15}(\.\d{1,18})?$/.test(bare) ? bare : null
}

const priceShape = z
  .object({
    rates: z.array(
      z.object({
        unit: z.enum(UNITS),
        usd: z.string().check(z.refine((text) => readRate(text) !== null, { error: 'rate' })),
        per: z.string().check(z.refine((text) => (readCount(text) ?? 0) >= 1, { error: 'count' })),
      }),
    ),
    effective_from: z.string(),
  })
  .check(
    z.superRefine(({ rates }, context) => {
      rates.forEach(({ unit }, n) => {
        if (rates.findIndex((one) => one.unit === unit) < n) {
          context.addIssue({ code: 'custom', path: ['rates', n, 'unit'], message: 'twice' })
        }
      })
    }),
  )

type PriceFields = z.infer<typeof priceShape>

/** A new version, which starts with the rates that are there. */
export function PriceForm({
  slug,
  rates,
  onDone,
}: {
  slug: string
  rates: readonly Rate[]
  onDone: (price: Price) => void
}) {
  const { t, locale } = useWords()
  const refresh = useRefresh()
  const known = inOrder(rates).map(({ unit, usd, per }) => ({
    unit: unit as PriceFields['rates'][number]['unit'],
    usd,
    per: formatCount(per, locale),
  }))
  const million = formatCount(1_000_000, locale)
  const editor = useEditor<PriceFields>({
    resolver: zodResolver(priceShape),
    start: {
      rates: known.length
        ? known
        : [
            { unit: 'input_token', usd: '', per: million },
            { unit: 'output_token', usd: '', per: million },
          ],
      effective_from: '',
    },
    save: async (given) => {
      const made = await ok(
        api.POST('/api/admin/prices', {
          body: {
            model: slug,
            rates: given.rates.map(({ unit, usd, per }) => ({
              unit,
              usd: readRate(usd)!,
              per: readCount(per)!,
            })),
            effective_from: given.effective_from ? new Date(given.effective_from).toISOString() : null,
          },
        }),
      )
      await refresh(['admin', 'prices'])
      toast(t('adminPrices.added', { name: slug }))
      onDone(made)
    },
  })
  const { form, tied } = editor
  const lines = useFieldArray({ control: form.control, name: 'rates' })
  const used = form.watch('rates').map((one) => one.unit)
  const free = UNITS.find((unit) => !used.includes(unit))
  return (
    <EditorForm editor={editor} action={t('adminPrices.add')}>
      <ul className="flex flex-col gap-3">
        {lines.fields.map((line, n) => (
          <li key={line.id} className="flex items-start gap-2">
            <div className="grid min-w-0 flex-1 grid-cols-2 gap-2 sm:grid-cols-[2fr_1fr_1fr]">
              <SelectField
                label={t('adminPrices.unit')}
                className="max-sm:col-span-2"
                hiddenLabel={n > 0}
                {...tied(`rates.${n}.unit`)}
              >
                {UNITS.map((unit) => (
                  <option key={unit} value={unit}>
                    {t(`adminPrices.units.${unit}`)}
                  </option>
                ))}
              </SelectField>
              <TextField
                label={t('meters.usd')}
                inputMode="decimal"
                autoComplete="off"
                hiddenLabel={n > 0}
                {...tied(`rates.${n}.usd`)}
              />
              <TextField
                label={t('adminPrices.perLabel')}
                autoComplete="off"
                hiddenLabel={n > 0}
                {...tied(`rates.${n}.per`)}
              />
            </div>
            <div className={n > 0 ? '' : 'pt-6.5'}>
              <IconButton
                icon="trash"
                label={t('adminPrices.removeRate', { unit: t(`adminPrices.units.${used[n]}`) })}
                disabled={lines.fields.length === 1}
                className="disabled:opacity-40"
                onClick={() => lines.remove(n)}
              />
            </div>
          </li>
        ))}
      </ul>
      <div>
        <Button
          icon="plus"
          disabled={free === undefined}
          onClick={() => free && lines.append({ unit: free, usd: '', per: million })}
        >
          {t('adminPrices.addRate')}
        </Button>
      </div>
      <TextField
        label={t('adminPrices.effectiveFrom')}
        type="datetime-local"
        className="max-w-xs"
        hint={t('adminPrices.effectiveFromHint')}
        {...tied('effective_from')}
      />
    </EditorForm>
  )
}
