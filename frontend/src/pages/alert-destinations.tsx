/** Destinations: webhooks and mailboxes that are told. */
import { zodResolver } from '@hookform/resolvers/zod'
import { useMutation } from '@tanstack/react-query'
import { useState } from 'react'
import * as z from 'zod/mini'

import type { Destination } from '@/api/admin-setup'
import { type Schemas, api, ok } from '@/api/client'
import { useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { Button, IconButton } from '@/ui/button'
import { Confirm, Dialog } from '@/ui/dialog'
import { CheckField, SelectField, TextField } from '@/ui/field'
import { When } from '@/ui/format'
import { Menu, MenuItem } from '@/ui/menu'
import { ToneBadge } from '@/ui/meter'
import { Card, Empty, Problem } from '@/ui/page'
import { DataTable } from '@/ui/table'
import { toast } from '@/ui/toast'

import { Boxes, EditorForm, SecretDialog, differing, useEditor, useMayWrite } from './setup-parts'

export function Destinations({ destinations }: { destinations: Destination[] }) {
  const { t } = useWords()
  const writes = useMayWrite()
  const refresh = useRefresh()
  const [edited, setEdited] = useState<Destination | 'new' | null>(null)
  const [secret, setSecret] = useState<string | null>(null)
  const [rotating, setRotating] = useState<Destination | null>(null)
  const [removing, setRemoving] = useState<Destination | null>(null)
  const close = () => setEdited(null)
  const at = (id: string) => ({ params: { path: { id } } })
  const test = useMutation({
    mutationFn: (id: string) => ok(api.POST('/api/admin/destinations/{id}/test', at(id))),
    onSuccess: () => {
      toast(t('adminAlerts.testSent'))
      return refresh(['admin', 'deliveries'])
    },
  })
  const add = writes && (
    <Button icon="plus" onClick={() => setEdited('new')}>
      {t('adminAlerts.addDestination')}
    </Button>
  )
  return (
    <Card title={t('adminAlerts.destinations')} flush actions={destinations.length > 0 && add}>
      {destinations.length === 0 ? (
        <Empty icon="bell" title={t('adminAlerts.noDestinations')} actions={add}>
          {t('adminAlerts.noDestinationsHint')}
        </Empty>
      ) : (
        <DataTable
          caption={t('adminAlerts.destinations')}
          rows={destinations}
          id={(row) => row.id}
          columns={[
            {
              name: 'name',
              head: t('adminModels.name'),
              title: true,
              cell: (row) => (
                <>
                  <strong className="font-semibold">{row.name}</strong>
                  <span className="block font-mono text-xs font-normal text-soft">{row.address}</span>
                </>
              ),
            },
            { name: 'kind', head: t('adminAlerts.kind'), cell: (row) => t(`adminAlerts.kinds.${row.kind}`) },
            {
              name: 'events',
              head: t('adminAlerts.toldOf'),
              cell: (row) =>
                row.events.length ? (
                  <ul>
                    {row.events.map((one) => (
                      <li key={one}>{t(`adminAlerts.events.${one}`)}</li>
                    ))}
                  </ul>
                ) : (
                  <span className="text-soft">{t('adminAlerts.rulesOnly')}</span>
                ),
            },
            {
              name: 'state',
              head: t('adminMembers.status'),
              cell: (row) => (
                <>
                  <Enabled enabled={row.enabled} />
                  {row.key_id && <span className="block text-xs text-soft">{t('adminAlerts.ofKey')}</span>}
                  {row.former_secret_until && new Date(row.former_secret_until) > new Date() && (
                    <span className="block text-xs text-soft">
                      {t('adminAlerts.bothUntil')} <When at={row.former_secret_until} />
                    </span>
                  )}
                </>
              ),
            },
            {
              name: 'actions',
              head: '',
              actions: true,
              end: true,
              cell: (row) =>
                writes && (
                  <span className="flex items-center gap-1 md:justify-end">
                    <Button
                      disabled={!row.enabled}
                      busy={test.isPending && test.variables === row.id}
                      aria-label={t('adminAlerts.testOf', { name: row.name })}
                      onClick={() => test.mutate(row.id)}
                    >
                      {t('adminAlerts.test')}
                    </Button>
                    <Menu trigger={<IconButton icon="dots" label={t('adminSetup.moreOf', { name: row.name })} />}>
                      <MenuItem icon="edit" onSelect={() => setEdited(row)}>
                        {t('adminSetup.edit')}
                      </MenuItem>
                      {row.kind === 'webhook' && (
                        <MenuItem icon="rotate" onSelect={() => setRotating(row)}>
                          {t('adminAlerts.rotate')}
                        </MenuItem>
                      )}
                      <MenuItem icon="trash" onSelect={() => setRemoving(row)}>
                        {t('adminSetup.remove')}
                      </MenuItem>
                    </Menu>
                  </span>
                ),
            },
          ]}
          below={(row) => (test.error && test.variables === row.id ? <Problem error={test.error} /> : null)}
        />
      )}
      <Dialog
        open={edited !== null}
        onClose={close}
        title={edited === 'new' ? t('adminAlerts.addDestination') : t('adminSetup.editOf', { name: edited?.name })}
      >
        {edited && (
          <DestinationForm
            {...(edited === 'new' ? {} : { destination: edited })}
            onClose={close}
            onDone={(made) => {
              close()
              if (made !== undefined) setSecret(made)
            }}
          />
        )}
      </Dialog>
      <SecretDialog
        title={t('adminAlerts.secretTitle')}
        hint={t('adminAlerts.secretOnce')}
        label={t('adminAlerts.secret')}
        secret={secret}
        onClose={() => setSecret(null)}
      />
      <Confirm
        open={rotating !== null}
        onClose={() => setRotating(null)}
        title={t('adminAlerts.rotateTitle', { name: rotating?.name })}
        action={t('adminAlerts.rotate')}
        onConfirm={async () => {
          const made = await ok(api.POST('/api/admin/destinations/{id}/rotate-secret', at(rotating!.id)))
          setSecret(made.webhook_secret ?? null)
          await refresh(['admin', 'destinations'])
        }}
      >
        <p>{t('adminAlerts.rotateEffect')}</p>
      </Confirm>
      <Confirm
        open={removing !== null}
        onClose={() => setRemoving(null)}
        title={t('adminAlerts.removeTitle', { name: removing?.name })}
        action={t('adminSetup.remove')}
        onConfirm={async () => {
          await ok(api.DELETE('/api/admin/destinations/{id}', at(removing!.id)))
          toast(t('adminSetup.removed'))
          await refresh(['admin', 'destinations'], ['admin', 'rules'], ['admin', 'deliveries'])
        }}
      >
        <p>{t('adminAlerts.removeEffect')}</p>
      </Confirm>
    </Card>
  )
}

export function Enabled({ enabled }: { enabled: boolean }) {
  const { t } = useWords()
  return enabled ? (
    <ToneBadge tone="good" icon="check" label={t('adminAlerts.on')} />
  ) : (
    <ToneBadge tone="idle" icon="pause" label={t('adminAlerts.off')} />
  )
}

export const EVENTS = [
  'allocation_exhausted',
  'realtime_session_cut',
  'request_raised',
  'unpriced_model_seen',
] as const

const shape = z
  .object({
    name: z.string().check(z.trim(), z.minLength(1, 'required')),
    kind: z.enum(['webhook', 'email']),
    address: z.string().check(z.trim()),
    events: z.array(z.enum(EVENTS)),
    enabled: z.boolean(),
  })
  .check(
    z.refine(({ kind, address }) => kind === 'email' || /^https?:\/\/\S+$/.test(address), {
      path: ['address'],
      error: 'address',
    }),
    z.refine(({ kind, address }) => kind === 'webhook' || /^\S+@\S+\.\S+$/.test(address), {
      path: ['address'],
      error: 'email',
    }),
  )

type Fields = z.infer<typeof shape>

function DestinationForm({
  destination,
  onClose,
  onDone,
}: {
  destination?: Destination
  onClose: () => void
  /** Given the secret of a new webhook. */
  onDone: (secret: string | undefined) => void
}) {
  const { t } = useWords()
  const refresh = useRefresh()
  const editor = useEditor<Fields>({
    resolver: zodResolver(shape),
    start: {
      name: destination?.name ?? '',
      kind: destination?.kind ?? 'webhook',
      address: destination?.address ?? '',
      events: (destination?.events ?? []) as Fields['events'],
      enabled: destination?.enabled ?? true,
    },
    save: async ({ kind, ...said }) => {
      const made = destination
        ? await ok(
            api.PATCH('/api/admin/destinations/{id}', {
              params: { path: { id: destination.id } },
              body: differing<Schemas['DestinationPatch']>(destination as Schemas['DestinationPatch'], said),
            }),
          )
        : await ok(api.POST('/api/admin/destinations', { body: { ...said, kind } }))
      await refresh(['admin', 'destinations'])
      toast(t('adminSetup.saved', { name: said.name }))
      const fresh = 'webhook_secret' in made ? made.webhook_secret : undefined
      onDone(typeof fresh === 'string' ? fresh : undefined)
    },
  })
  const { form, tied } = editor
  const kind = form.watch('kind')
  return (
    <EditorForm editor={editor} action={destination ? t('common.save') : t('adminAlerts.addDestination')} onClose={onClose}>
      <div className="grid gap-4 sm:grid-cols-2">
        <TextField label={t('adminModels.name')} autoComplete="off" maxLength={200} {...tied('name')} />
        {/* What it is stays: a mailbox does not become a webhook. */}
        <SelectField label={t('adminAlerts.kind')} {...tied('kind')}>
          {(destination ? [destination.kind] : (['webhook', 'email'] as const)).map((one) => (
            <option key={one} value={one}>
              {t(`adminAlerts.kinds.${one}`)}
            </option>
          ))}
        </SelectField>
      </div>
      <TextField
        label={kind === 'webhook' ? t('adminAlerts.url') : t('auth.email')}
        type={kind === 'webhook' ? 'url' : 'email'}
        autoComplete="off"
        spellCheck={false}
        hint={kind === 'webhook' ? t('adminAlerts.urlHint') : undefined}
        {...tied('address')}
      />
      <Boxes legend={t('adminAlerts.toldOf')} hint={t('adminAlerts.toldOfHint')}>
        {EVENTS.map((one) => (
          <CheckField key={one} value={one} label={t(`adminAlerts.events.${one}`)} {...form.register('events')} />
        ))}
      </Boxes>
      <CheckField label={t('adminAlerts.enabled')} hint={t('adminAlerts.enabledHint')} {...form.register('enabled')} />
    </EditorForm>
  )
}
