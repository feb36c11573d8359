/** Models and providers: where calls go, and by which names they are asked for. */
import { useMutation, useQuery } from '@tanstack/react-query'
import { useState } from 'react'

import { type Model, type Provider, modelsQuery, pricesQuery, providersQuery } from '@/api/admin-setup'
import { useWords } from '@/i18n'
import { Button, LinkButton, TextLink } from '@/ui/button'
import { Dialog } from '@/ui/dialog'
import { TextField } from '@/ui/field'
import { Choice, Filters } from '@/ui/filters'
import { Count } from '@/ui/format'
import { ToneBadge } from '@/ui/meter'
import { Answered, Card, Empty, Page } from '@/ui/page'
import { DataTable } from '@/ui/table'

import { ModelForm, ProviderForm } from './model-forms'
import { ProviderTest, testProvider } from './provider-test'
import { Slug, useAsked, useMayWrite } from './setup-parts'

export default function AdminModels() {
  const { t } = useWords()
  const providers = useQuery(providersQuery)
  return (
    <Page title={t('adminModels.title')} about={t('adminModels.about')}>
      <Answered of={providers}>
        {(known) => (
          <>
            <Providers providers={known} />
            {known.length > 0 && <Models providers={known} />}
          </>
        )}
      </Answered>
    </Page>
  )
}

function Providers({ providers }: { providers: Provider[] }) {
  const { t } = useWords()
  const writes = useMayWrite()
  const models = useQuery(modelsQuery)
  const [edited, setEdited] = useState<Provider | 'new' | null>(null)
  const close = () => setEdited(null)
  const add = (
    <Button icon="plus" onClick={() => setEdited('new')}>
      {t('adminModels.addProvider')}
    </Button>
  )
  return (
    <Card title={t('adminModels.providers')} flush actions={writes && providers.length > 0 && add}>
      {providers.length === 0 ? (
        <Empty
          icon="model"
          title={t('adminModels.noProviders')}
          actions={
            writes && (
              <>
                <LinkButton look="main" icon="wand" to="/admin/setup">
                  {t('wizard.start')}
                </LinkButton>
                {add}
              </>
            )
          }
        >
          {t('adminModels.noProvidersHint')}
        </Empty>
      ) : (
        <ProviderTable
          providers={providers}
          modelsOf={(id) => models.data?.filter((model) => model.provider_id === id).length}
          onEdit={setEdited}
        />
      )}
      <Dialog
        open={edited !== null}
        onClose={close}
        title={edited === 'new' ? t('adminModels.addProvider') : t('adminModels.editProvider')}
      >
        {edited && (
          <ProviderForm {...(edited === 'new' ? {} : { provider: edited })} onClose={close} onDone={close} />
        )}
      </Dialog>
    </Card>
  )
}

function ProviderTable({
  providers,
  modelsOf,
  onEdit,
}: {
  providers: Provider[]
  modelsOf: (id: string) => number | undefined
  onEdit: (provider: Provider) => void
}) {
  const { t } = useWords()
  const writes = useMayWrite()
  const test = useMutation({ mutationFn: testProvider })
  return (
    <DataTable
      caption={t('adminModels.providers')}
      rows={providers}
      id={(row) => row.id}
      columns={[
        { name: 'name', head: t('adminModels.name'), title: true, cell: (row) => <strong className="font-semibold">{row.name}</strong> },
        { name: 'kind', head: t('adminModels.kind'), cell: (row) => t(`adminModels.kinds.${row.kind}`) },
        { name: 'url', head: t('adminModels.baseUrl'), cell: (row) => <span className="font-mono text-xs">{row.base_url}</span> },
        {
          name: 'credential',
          head: t('adminModels.credential'),
          cell: (row) =>
            row.has_credential ? (
              <ToneBadge tone="good" icon="check" label={t('adminModels.hasCredential')} />
            ) : (
              <ToneBadge tone="warn" icon="warning" label={t('adminModels.noCredential')} />
            ),
        },
        { name: 'models', head: t('adminModels.models'), end: true, cell: (row) => modelsOf(row.id) ?? '' },
        {
          name: 'actions',
          head: '',
          actions: true,
          end: true,
          cell: (row) =>
            writes && (
              <span className="flex flex-wrap gap-2 md:flex-nowrap md:justify-end">
                <Button
                  aria-label={t('adminModels.testOf', { name: row.name })}
                  busy={test.isPending && test.variables === row.id}
                  onClick={() => test.mutate(row.id)}
                >
                  {t('adminModels.test')}
                </Button>
                <Button
                  icon="edit"
                  aria-label={t('adminSetup.editOf', { name: row.name })}
                  onClick={() => onEdit(row)}
                >
                  {t('adminSetup.edit')}
                </Button>
              </span>
            ),
        },
      ]}
      below={(row) =>
        test.variables === row.id && !test.isIdle && !test.isPending ? (
          <ProviderTest result={test.data} error={test.error} />
        ) : null
      }
    />
  )
}

function Models({ providers }: { providers: Provider[] }) {
  const { t } = useWords()
  const writes = useMayWrite()
  const models = useQuery(modelsQuery)
  const prices = useQuery(pricesQuery())
  const { asked, ask } = useAsked('/admin/models')
  const [edited, setEdited] = useState<Model | 'new' | null>(null)
  const close = () => setEdited(null)
  const sought = (asked.model ?? '').toLowerCase()
  const priced = new Set(prices.data?.filter((one) => one.in_force).map((one) => one.model))
  const add = (
    <Button icon="plus" onClick={() => setEdited('new')}>
      {t('adminModels.addModel')}
    </Button>
  )
  return (
    <Card
      title={t('adminModels.models')}
      flush
      actions={writes && Boolean(models.data?.length) && add}
    >
      <Answered of={models}>
        {(all) => {
          const rows = all.filter(
            (row) =>
              (row.slug.toLowerCase().includes(sought) ||
                row.upstream_model.toLowerCase().includes(sought)) &&
              (!asked.provider || row.provider_id === asked.provider),
          )
          if (all.length === 0) {
            return (
              <Empty icon="model" title={t('adminModels.noModels')} actions={writes && add}>
                {t('adminModels.noModelsHint')}
              </Empty>
            )
          }
          return (
            <>
              <Filters framed>
                <TextField
                  type="search"
                  label={t('adminSetup.search')}
                  value={asked.model ?? ''}
                  onChange={(event) => ask({ model: event.target.value })}
                />
                <Choice
                  label={t('adminModels.provider')}
                  value={asked.provider}
                  onChange={(value) => ask({ provider: value })}
                  options={providers.map((one) => [one.id, one.name] as const)}
                />
              </Filters>
              {rows.length === 0 ? (
                <Empty icon="search" title={t('adminSetup.nothingFound')} />
              ) : (
                <ModelTable
                  rows={rows}
                  nameOf={(id) => providers.find((one) => one.id === id)?.name ?? id}
                  priced={prices.data ? priced : undefined}
                  onEdit={setEdited}
                />
              )}
            </>
          )
        }}
      </Answered>
      <Dialog
        open={edited !== null}
        onClose={close}
        title={edited === 'new' ? t('adminModels.addModel') : t('adminModels.editModel', { name: edited?.slug })}
      >
        {edited && (
          <ModelForm
            providers={providers}
            {...(edited === 'new' ? {} : { model: edited })}
            onClose={close}
            onDone={close}
          />
        )}
      </Dialog>
    </Card>
  )
}

function ModelTable({
  rows,
  nameOf,
  priced,
  onEdit,
}: {
  rows: Model[]
  nameOf: (providerId: string) => string
  priced: ReadonlySet<string> | undefined
  onEdit: (model: Model) => void
}) {
  const { t } = useWords()
  const writes = useMayWrite()
  const amount = (value: number | null) =>
    value === null ? <span className="text-soft">{t('adminModels.unknown')}</span> : <Count value={value} />
  return (
    <DataTable
      caption={t('adminModels.models')}
      rows={rows}
      id={(row) => row.slug}
      columns={[
        {
          name: 'slug',
          head: t('adminModels.model'),
          title: true,
          cell: (row) => (
            <>
              <span className="font-mono text-[0.8125rem] font-semibold">{row.slug}</span>
              {row.upstream_model !== row.slug && (
                <span className="block text-xs font-normal text-soft">
                  {t('adminModels.known', { name: row.upstream_model })}
                </span>
              )}
            </>
          ),
        },
        { name: 'provider', head: t('adminModels.provider'), cell: (row) => <span className="wrap-break-word">{nameOf(row.provider_id)}</span> },
        {
          name: 'endpoints',
          wide: true,
          head: t('adminModels.endpoints'),
          cell: (row) =>
            row.endpoints === null ? (
              <span className="text-soft">{t('adminModels.anyEndpoint')}</span>
            ) : (
              <span className="flex flex-wrap gap-1">
                {row.endpoints.map((one) => (
                  <Slug key={one}>{one}</Slug>
                ))}
              </span>
            ),
        },
        { name: 'context', head: t('adminModels.context'), end: true, cell: (row) => amount(row.context_window) },
        { name: 'most', head: t('adminModels.most'), end: true, cell: (row) => amount(row.max_output_tokens) },
        {
          name: 'price',
          head: t('adminModels.price'),
          cell: (row) =>
            priced &&
            (priced.has(row.slug) ? (
              <TextLink to="/admin/prices" search={{ model: row.slug }}>
                {t('adminModels.priced')}
                <span className="sr-only">: {row.slug}</span>
              </TextLink>
            ) : (
              <span className="inline-flex flex-wrap items-center gap-x-2">
                <ToneBadge tone="warn" icon="tag" label={t('common.unpriced')} />
                <TextLink to="/admin/prices" search={{ model: row.slug }}>
                  {t('adminModels.setPrice')}
                  <span className="sr-only">: {row.slug}</span>
                </TextLink>
              </span>
            )),
        },
        {
          name: 'actions',
          head: '',
          actions: true,
          end: true,
          cell: (row) =>
            writes && (
              <Button
                icon="edit"
                aria-label={t('adminSetup.editOf', { name: row.slug })}
                onClick={() => onEdit(row)}
              >
                {t('adminSetup.edit')}
              </Button>
            ),
        },
      ]}
    />
  )
}
