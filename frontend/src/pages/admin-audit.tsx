/** Audit: who changed what, when and why; nothing here can be changed. */
import { useInfiniteQuery, useQuery } from '@tanstack/react-query'
import { useTranslation } from 'react-i18next'

import { type AuditEvent, auditQuery, membersQuery } from '@/api/admin-setup'
import { useWords } from '@/i18n'
import { Button, DownloadLink } from '@/ui/button'
import { TextField } from '@/ui/field'
import { Choice, Filters, More } from '@/ui/filters'
import { When } from '@/ui/format'
import { Answered, Card, Empty, Page } from '@/ui/page'
import { DataTable } from '@/ui/table'

import { useAsked } from './setup-parts'

/** What events are about, by the names that they bear in the audit. */
const OBJECTS = [
  'provider',
  'model',
  'price',
  'member',
  'invitation',
  'allocation',
  'pool',
  'key',
  'top_up',
  'request',
  'call',
  'realtime_session',
  'destination',
  'alert_rule',
  'delivery',
] as const

export default function AdminAudit() {
  const { t } = useWords()
  const { asked, ask } = useAsked('/admin/audit')
  const members = useQuery(membersQuery)
  const given = (name: string) => asked[name] || undefined
  const filters = {
    event: given('event'),
    actor_id: given('actor_id'),
    object: given('object'),
    object_id: given('object_id'),
    from: given('from'),
    to: given('to'),
  }
  const events = useInfiniteQuery(auditQuery(filters))
  const filtered = Object.values(filters).some(Boolean)
  const query = new URLSearchParams(
    Object.entries(filters).filter((one): one is [string, string] => one[1] !== undefined),
  ).toString()
  return (
    <Page
      title={t('nav.adminAudit')}
      about={t('adminAudit.about')}
      actions={
        <DownloadLink href={`/api/admin/audit.csv${query && `?${query}`}`}>{t('adminAudit.csv')}</DownloadLink>
      }
    >
      <Card flush>
        <Filters framed>
          <Choice
            label={t('adminAudit.object')}
            value={asked.object}
            onChange={(value) => ask({ object: value })}
            options={OBJECTS.map((one) => [one, t(`adminAudit.objects.${one}`)] as const)}
          />
          <Choice
            label={t('adminAudit.actor')}
            value={asked.actor_id}
            onChange={(value) => ask({ actor_id: value })}
            options={(members.data ?? []).map((one) => [one.id, one.email] as const)}
          />
          <TextField
            label={t('adminSetup.from')}
            type="date"
            value={asked.from ?? ''}
            onChange={(event) => ask({ from: event.target.value })}
          />
          <TextField
            label={t('adminAudit.before')}
            type="date"
            value={asked.to ?? ''}
            onChange={(event) => ask({ to: event.target.value })}
          />
          {(filters.event || filters.object_id) && (
            <p className="flex flex-wrap items-center gap-2 col-span-full">
              {filters.event && (
                <Chosen label={t('adminAudit.event')} value={filters.event} onEnd={() => ask({ event: '' })} />
              )}
              {filters.object_id && (
                <Chosen label={t('adminAudit.id')} value={filters.object_id} onEnd={() => ask({ object_id: '' })} />
              )}
            </p>
          )}
        </Filters>
        <Answered of={events}>
          {({ pages }) => {
            const rows = pages.flatMap((page) => page.items)
            if (rows.length === 0) {
              return <Empty icon="audit" title={filtered ? t('adminSetup.nothingFound') : t('adminAudit.none')} />
            }
            return (
              <>
                <Events rows={rows} onEvent={(event) => ask({ event })} onObject={(object_id) => ask({ object_id })} />
                <More of={events} />
              </>
            )
          }}
        </Answered>
      </Card>
    </Page>
  )
}

/** A filter that was picked in the list, and the way to be rid of it. */
function Chosen({ label, value, onEnd }: { label: string; value: string; onEnd: () => void }) {
  return (
    <Button icon="close" onClick={onEnd}>
      {label}: <span className="font-mono text-xs">{value}</span>
    </Button>
  )
}

/** What has no words yet, in those of the books: `allocation_floor_updated`. */
const words = (name: string) => {
  const spaced = name.replaceAll('_', ' ')
  return spaced.charAt(0).toUpperCase() + spaced.slice(1)
}

const KNOWN = new Set<string>(OBJECTS)

function Events({
  rows,
  onEvent,
  onObject,
}: {
  rows: AuditEvent[]
  onEvent: (event: string) => void
  onObject: (id: string) => void
}) {
  const { t } = useWords()
  const { i18n } = useTranslation()
  const link = 'rounded-sm text-left underline decoration-line decoration-1 underline-offset-3 hover:decoration-2'
  return (
    <DataTable
      caption={t('nav.adminAudit')}
      rows={rows}
      id={(row) => row.id}
      columns={[
        {
          name: 'event',
          head: t('adminAudit.event'),
          title: true,
          cell: (row) => (
            <button type="button" className={`${link} font-medium`} onClick={() => onEvent(row.event)}>
              {i18n.exists(`adminAudit.events.${row.event}`) ? t(`adminAudit.events.${row.event}`) : words(row.event)}
            </button>
          ),
        },
        { name: 'at', head: t('adminAudit.at'), cell: (row) => <When at={row.at} /> },
        { name: 'actor', head: t('adminAudit.actor'), cell: (row) => row.actor },
        {
          name: 'object',
          wide: true,
          head: t('adminAudit.object'),
          cell: (row) => (
            <>
              {KNOWN.has(row.object) ? t(`adminAudit.objects.${row.object}`) : words(row.object)}{' '}
              <button type="button" className={`${link} font-mono text-xs`} onClick={() => onObject(row.object_id)}>
                {row.object_id}
              </button>
            </>
          ),
        },
        {
          name: 'reason',
          head: t('adminSetup.reason'),
          cell: (row) => row.reason ?? '',
          optional: (row) => row.reason !== null,
        },
      ]}
      below={(row) => (row.before === null && row.after === null ? null : <Changes event={row} />)}
    />
  )
}

const asFields = (value: unknown): Record<string, unknown> => {
  if (value === null || value === undefined) return {}
  return typeof value === 'object' && !Array.isArray(value) ? (value as Record<string, unknown>) : { '': value }
}

/** What was and what is, a line for each field. */
function Changes({ event }: { event: AuditEvent }) {
  const { t } = useWords()
  const before = asFields(event.before)
  const after = asFields(event.after)
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])].filter(
    (name) => JSON.stringify(before[name]) !== JSON.stringify(after[name]),
  )
  const created = event.before === null
  const lines = (
    <dl className="grid grid-cols-[auto_1fr] gap-x-4 gap-y-0.5 text-xs max-sm:grid-cols-1">
      {names.map((name) => (
        <div key={name} className="contents">
          <dt className="text-soft">
            {name ? <code className="font-mono">{name}</code> : t('adminAudit.value')}
          </dt>
          <dd className="min-w-0">
            {!created && (
              <>
                <del className="text-soft">
                  <Value value={before[name]} />
                </del>
                <span aria-hidden="true"> → </span>
              </>
            )}
            <ins className="no-underline">
              <Value value={after[name]} />
            </ins>
          </dd>
        </div>
      ))}
      {event.request_id && (
        <>
          <dt className="text-soft">{t('adminAudit.request')}</dt>
          <dd className="font-mono">{event.request_id}</dd>
        </>
      )}
    </dl>
  )
  if (names.length <= FEW) return lines
  return (
    <details className="text-xs">
      <summary className="w-fit rounded text-accent">
        {t('adminAudit.fields', { count: names.length })}
        <span className="sr-only">: {event.event}</span>
      </summary>
      <div className="mt-2">{lines}</div>
    </details>
  )
}

const FEW = 4

function Value({ value }: { value: unknown }) {
  const { t } = useWords()
  if (value === undefined || value === null) return <span className="text-soft">{t('adminSetup.none')}</span>
  if (typeof value === 'boolean') return value ? t('adminAudit.yes') : t('adminAudit.no')
  if (typeof value === 'string' || typeof value === 'number') return <>{String(value)}</>
  if (Array.isArray(value) && value.every((one) => typeof one === 'string')) return <>{value.join(', ')}</>
  if (Array.isArray(value)) {
    return (
      <>
        {value.map((one, n) => (
          <code key={n} className="block font-mono">
            {typeof one === 'object' && one !== null
              ? Object.entries(one)
                  .map(([name, part]) => `${name} ${typeof part === 'object' ? JSON.stringify(part) : String(part)}`)
                  .join(' · ')
              : String(one)}
          </code>
        ))}
      </>
    )
  }
  return <code className="font-mono">{JSON.stringify(value)}</code>
}
