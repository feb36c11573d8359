/** One member: who it is, what they may use, the keys that open it, and shutting them out. */
import { useMutation, useQuery } from '@tanstack/react-query'
import { useState } from 'react'

import {
  type Allocation,
  type Member,
  allocationsQuery,
  keysQuery,
  membersQuery,
} from '@/api/admin-setup'
import { api, ok } from '@/api/client'
import { type Key, useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { useSession } from '@/shell/gate'
import { Button, LinkButton, TextLink } from '@/ui/button'
import { Confirm, Dialog } from '@/ui/dialog'
import { Count, When } from '@/ui/format'
import { Meter, StateBadge, ToneBadge } from '@/ui/meter'
import { Answered, Card, Empty, Page, Problem } from '@/ui/page'
import { DataTable } from '@/ui/table'
import { toast } from '@/ui/toast'

import { LinkFor } from './invitations'
import { KeyForm } from './member-key-form'
import { MemberForm } from './member-form'
import { MemberIdentities } from './member-identities'
import { Facts, SecretDialog, useMayWrite } from './setup-parts'

export function StatusBadge({ status }: { status: Member['status'] }) {
  const { t } = useWords()
  return status === 'active' ? (
    <ToneBadge tone="good" icon="check" label={t('adminMembers.statuses.active')} />
  ) : (
    <ToneBadge tone="idle" icon="stop" label={t('adminMembers.statuses.disabled')} />
  )
}

export function OneMember({ id }: { id: string }) {
  const { t } = useWords()
  const members = useQuery(membersQuery)
  const member = members.data?.find((one) => one.id === id)
  return (
    <Page
      title={member ? member.display_name || member.email : t('adminMembers.member')}
      about={member && `${member.email} · ${t(`roles.${member.role}`)}`}
      actions={<LinkButton to="/admin/members">{t('adminMembers.all')}</LinkButton>}
    >
      <Answered of={members}>
        {() =>
          member ? (
            <>
              <Person member={member} />
              <Allocations member={member} />
              <Keys member={member} />
            </>
          ) : (
            <Card>
              <Empty icon="search" title={t('adminMembers.noSuch')} />
            </Card>
          )
        }
      </Answered>
    </Page>
  )
}

const works = (key: Key) => key.revoked_at === null && !(key.one_shot && key.used_at !== null)

function Person({ member }: { member: Member }) {
  const { t } = useWords()
  const writes = useMayWrite()
  const refresh = useRefresh()
  const self = useSession().member.id === member.id
  const keys = useQuery(keysQuery(member.id))
  const [editing, setEditing] = useState(false)
  const [disabling, setDisabling] = useState(false)
  const close = () => setEditing(false)
  const set = useMutation({
    mutationFn: (status: Member['status']) =>
      ok(api.PATCH('/api/admin/members/{id}', { params: { path: { id: member.id } }, body: { status } })),
    onSuccess: (_, status) => {
      toast(t(`adminMembers.now.${status}`))
      return refresh(['admin', 'members'])
    },
  })
  const active = member.status === 'active'
  return (
    <Card
      title={t('adminMembers.profile')}
      actions={
        writes && (
          <>
            <Button icon="edit" onClick={() => setEditing(true)}>
              {t('adminSetup.edit')}
            </Button>
            {active && <LinkFor member={member} />}
            {active ? (
              <Button look="danger" icon="stop" onClick={() => setDisabling(true)}>
                {t('adminMembers.disable')}
              </Button>
            ) : (
              <Button icon="check" busy={set.isPending} onClick={() => set.mutate('active')}>
                {t('adminMembers.enable')}
              </Button>
            )}
          </>
        )
      }
    >
      {set.error && !disabling && <Problem error={set.error} className="mb-4" />}
      <Facts>
        <dt>{t('auth.email')}</dt>
        <dd>{member.email}</dd>
        <dt>{t('adminMembers.role')}</dt>
        <dd>
          {t(`roles.${member.role}`)}
          <span className="text-soft"> · {t(`adminMembers.roleHints.${member.role}`)}</span>
        </dd>
        <dt>{t('adminMembers.status')}</dt>
        <dd>
          <StatusBadge status={member.status} />
        </dd>
        <dt>{t('auth.password')}</dt>
        <dd>
          {!member.has_password
            ? t('adminMembers.noPassword')
            : member.must_change_password
              ? t('adminMembers.mustChange')
              : t('adminMembers.ownPassword')}
        </dd>
        <dt className="sm:self-center">{t('adminMembers.identities')}</dt>
        <dd>
          <MemberIdentities memberId={member.id} />
        </dd>
        <dt>{t('adminSetup.added')}</dt>
        <dd>
          <When at={member.created_at} utc />
        </dd>
      </Facts>
      <Dialog open={editing} onClose={close} title={t('adminMembers.edit', { name: member.email })}>
        <MemberForm member={member} onClose={close} onDone={close} />
      </Dialog>
      <Confirm
        open={disabling}
        onClose={() => setDisabling(false)}
        title={t('adminMembers.disableTitle', { name: member.display_name || member.email })}
        action={t('adminMembers.disable')}
        onConfirm={() => set.mutateAsync('disabled')}
      >
        {self && <p className="font-semibold">{t('adminMembers.disableSelf')}</p>}
        <p>{t('adminMembers.disableSignIn')}</p>
        <p>{t('adminMembers.disableKeys', { count: keys.data?.filter(works).length ?? 0 })}</p>
        <p className="text-soft">{t('adminMembers.disableStays')}</p>
      </Confirm>
    </Card>
  )
}

function Allocations({ member }: { member: Member }) {
  const { t } = useWords()
  const allocations = useQuery(allocationsQuery(member.id))
  return (
    <Card
      title={t('nav.allocations')}
      flush
      actions={
        <LinkButton icon="wallet" to="/admin/allocations" search={{ member_id: member.id }}>
          {t('adminMembers.toAllocations')}
        </LinkButton>
      }
    >
      <Answered of={allocations}>
        {(rows) =>
          rows.length === 0 ? (
            <Empty icon="wallet" title={t('adminMembers.noAllocations')}>
              {t('adminMembers.noAllocationsHint')}
            </Empty>
          ) : (
            <DataTable
              caption={t('nav.allocations')}
              rows={rows}
              id={(row) => row.id}
              columns={[
                {
                  name: 'name',
                  head: t('adminMembers.allocation'),
                  title: true,
                  cell: (row) => (
                    <span className="wrap-break-word">
                      <TextLink to="/admin/allocations" search={{ id: row.id }}>
                        {row.name}
                      </TextLink>
                    </span>
                  ),
                },
                { name: 'state', head: t('adminMembers.status'), cell: (row) => <StateBadge state={row.state} /> },
                {
                  name: 'usd',
                  wide: true,
                  head: '',
                  cell: (row) => (
                    <span className="block md:min-w-40">
                      <Meter
                        small
                        label={t('allocations.cost')}
                        meter="usd"
                        amount={row.effective_cost_usd_per_month}
                        used={row.cost_used_this_month}
                        held={row.cost_held}
                        paused={row.status !== 'active'}
                      />
                    </span>
                  ),
                },
                {
                  name: 'models',
                  wide: true,
                  head: t('allocations.models'),
                  cell: (row) => <span className="font-mono text-xs">{row.models.join(', ')}</span>,
                },
              ]}
            />
          )
        }
      </Answered>
    </Card>
  )
}

function Keys({ member }: { member: Member }) {
  const { t } = useWords()
  const writes = useMayWrite()
  const refresh = useRefresh()
  const keys = useQuery(keysQuery(member.id))
  const allocations = useQuery(allocationsQuery(member.id))
  const [adding, setAdding] = useState(false)
  const [shown, setShown] = useState<string | null>(null)
  const [rotating, setRotating] = useState<Key | null>(null)
  const [revoking, setRevoking] = useState<Key | null>(null)
  const nameOf = (id: string) => allocations.data?.find((one) => one.id === id)?.name ?? id
  const can = writes && Boolean(allocations.data?.length)
  const add = can && (
    <Button icon="plus" onClick={() => setAdding(true)}>
      {t('adminMembers.addKey')}
    </Button>
  )
  const at = (id: string) => ({ params: { path: { id } } })
  return (
    <Card title={t('nav.keys')} flush actions={Boolean(keys.data?.length) && add}>
      <Answered of={keys}>
        {(rows) =>
          rows.length === 0 ? (
            <Empty icon="key" title={t('adminMembers.noKeys')} actions={add}>
              {t('adminMembers.noKeysHint')}
            </Empty>
          ) : (
            <DataTable
              caption={t('nav.keys')}
              rows={rows}
              id={(row) => row.id}
              columns={[
                {
                  name: 'name',
                  head: t('adminMembers.key'),
                  title: true,
                  cell: (row) => (
                    <>
                      <strong className="font-semibold">{row.name}</strong>{' '}
                      <code className="block font-mono text-xs font-normal text-soft">{row.hint}</code>
                      {row.one_shot && (
                        <span className="block text-xs font-normal text-soft">{t('adminMembers.oneShot')}</span>
                      )}
                    </>
                  ),
                },
                { name: 'state', head: t('adminMembers.status'), cell: (row) => <KeyState keyView={row} /> },
                {
                  name: 'opens',
                  head: t('adminMembers.opens'),
                  cell: (row) => row.allocation_ids.map(nameOf).join(', '),
                },
                {
                  name: 'budget',
                  head: t('adminMembers.budget'),
                  end: true,
                  cell: (row) =>
                    row.token_budget === null ? (
                      <span className="text-soft">{t('adminSetup.none')}</span>
                    ) : (
                      <Count value={row.token_budget} />
                    ),
                },
                {
                  name: 'expires',
                  head: t('adminMembers.expires'),
                  cell: (row) => (row.expires_at ? <When at={row.expires_at} /> : <span className="text-soft">{t('adminMembers.never')}</span>),
                },
                {
                  name: 'actions',
                  head: '',
                  actions: true,
                  end: true,
                  cell: (row) =>
                    writes &&
                    row.revoked_at === null && (
                      <span className="flex flex-wrap gap-2 md:flex-nowrap md:justify-end">
                        <Button aria-label={t('adminMembers.rotateOf', { name: row.name })} onClick={() => setRotating(row)}>
                          {t('adminMembers.rotate')}
                        </Button>
                        <Button
                          look="danger"
                          aria-label={t('adminMembers.revokeOf', { name: row.name })}
                          onClick={() => setRevoking(row)}
                        >
                          {t('adminMembers.revoke')}
                        </Button>
                      </span>
                    ),
                },
              ]}
            />
          )
        }
      </Answered>
      <Dialog open={adding} onClose={() => setAdding(false)} title={t('adminMembers.addKey')}>
        <KeyForm
          memberId={member.id}
          allocations={(allocations.data ?? []) as Allocation[]}
          onClose={() => setAdding(false)}
          onDone={(made) => {
            setAdding(false)
            setShown(made.key)
          }}
        />
      </Dialog>
      <SecretDialog
        title={t('adminMembers.keyTitle')}
        hint={t('adminMembers.keyOnce')}
        label={t('adminMembers.keySecret')}
        secret={shown}
        onClose={() => setShown(null)}
      />
      <Confirm
        open={rotating !== null}
        onClose={() => setRotating(null)}
        title={t('adminMembers.rotateTitle', { name: rotating?.name })}
        action={t('adminMembers.rotate')}
        onConfirm={async () => {
          const made = await ok(api.POST('/api/admin/keys/{id}/rotate', at(rotating!.id)))
          setShown(made.key)
          await refresh(['admin', 'keys'])
        }}
      >
        <p>{t('adminMembers.rotateEffect')}</p>
      </Confirm>
      <Confirm
        open={revoking !== null}
        onClose={() => setRevoking(null)}
        title={t('adminMembers.revokeTitle', { name: revoking?.name })}
        action={t('adminMembers.revoke')}
        onConfirm={async () => {
          await ok(api.POST('/api/admin/keys/{id}/revoke', at(revoking!.id)))
          toast(t('adminMembers.revoked'))
          await refresh(['admin', 'keys'])
        }}
      >
        <p>{t('adminMembers.revokeEffect')}</p>
      </Confirm>
    </Card>
  )
}

function KeyState({ keyView: key }: { keyView: Key }) {
  const { t } = useWords()
  if (key.revoked_at !== null) return <ToneBadge tone="idle" icon="stop" label={t('adminMembers.keyStates.revoked')} />
  if (key.one_shot && key.used_at !== null) {
    return <ToneBadge tone="idle" icon="check" label={t('adminMembers.keyStates.used')} />
  }
  if (key.expires_at !== null && new Date(key.expires_at) <= new Date()) {
    return <ToneBadge tone="idle" icon="clock" label={t('adminMembers.keyStates.expired')} />
  }
  return <ToneBadge tone="good" icon="check" label={t('adminMembers.keyStates.works')} />
}
