/** Invitations: links by which members choose a password; made, listed, renewed and revoked. */
import { zodResolver } from '@hookform/resolvers/zod'
import { infiniteQueryOptions, useInfiniteQuery } from '@tanstack/react-query'
import { useState } from 'react'
import * as z from 'zod/mini'

import type { Member } from '@/api/admin-setup'
import { api, ok, type Schemas } from '@/api/client'
import { useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { Button } from '@/ui/button'
import { Snippet } from '@/ui/copy'
import { Confirm, Dialog, DialogActions } from '@/ui/dialog'
import { SelectField, TextField } from '@/ui/field'
import { Filters } from '@/ui/filters'
import { When } from '@/ui/format'
import { ToneBadge } from '@/ui/meter'
import { Answered, Card, Empty } from '@/ui/page'
import { DataTable } from '@/ui/table'
import { toast } from '@/ui/toast'

import { EditorForm, useAsked, useEditor, useMayWrite } from './setup-parts'

type Invitation = Schemas['InvitationDocument']
type Made = Schemas['InvitationWithLink']

const PAGE = 50
const ROLES = ['member', 'auditor', 'admin'] as const
const STATUSES = ['pending', 'expired', 'accepted', 'revoked'] as const
const DAYS = [1, 3, 7, 14, 30] as const

const invitationsQuery = (status?: Invitation['status']) =>
  infiniteQueryOptions({
    queryKey: ['admin', 'invitations', status ?? null],
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (last: { next?: string | null }) => last.next ?? undefined,
    queryFn: ({ pageParam: cursor }) =>
      ok(api.GET('/api/admin/invitations', { params: { query: { status, cursor, limit: PAGE } } })),
  })

/** What a link changes of what is shown: who there is, and which links. */
const CHANGED = [['admin', 'members'], ['admin', 'invitations']]

const isStatus = (text: string): text is Invitation['status'] => STATUSES.some((one) => one === text)

export function Invitations() {
  const { t } = useWords()
  const { asked, ask } = useAsked('/admin/members')
  const chosen = asked.invitations ?? 'pending'
  const found = useInfiniteQuery(invitationsQuery(isStatus(chosen) ? chosen : undefined))
  return (
    <Card title={t('adminInvitations.title')} flush>
      <Filters framed>
        <SelectField
          label={t('adminInvitations.which')}
          value={isStatus(chosen) ? chosen : 'all'}
          onChange={(event) => ask({ invitations: event.target.value })}
        >
          {STATUSES.map((one) => (
            <option key={one} value={one}>
              {t(`adminInvitations.statuses.${one}`)}
            </option>
          ))}
          <option value="all">{t('common.all')}</option>
        </SelectField>
      </Filters>
      <Answered of={found}>
        {({ pages }) => {
          const rows = pages.flatMap((page) => page.items)
          if (rows.length === 0) {
            return (
              <Empty icon="inbox" title={t('adminInvitations.none')}>
                {t('adminInvitations.noneHint')}
              </Empty>
            )
          }
          return (
            <>
              <Listed rows={rows} />
              {found.hasNextPage && (
                <div className="p-4 text-center">
                  <Button busy={found.isFetchingNextPage} onClick={() => void found.fetchNextPage()}>
                    {t('common.more')}
                  </Button>
                </div>
              )}
            </>
          )
        }}
      </Answered>
    </Card>
  )
}

function Listed({ rows }: { rows: Invitation[] }) {
  const { t } = useWords()
  const writes = useMayWrite()
  const refresh = useRefresh()
  const [renewing, setRenewing] = useState<Invitation | null>(null)
  const [revoking, setRevoking] = useState<Invitation | null>(null)
  const [made, setMade] = useState<Made | null>(null)
  const at = (one: Invitation) => ({ params: { path: { id: one.id } } })
  return (
    <>
      <DataTable
        caption={t('adminInvitations.title')}
        rows={rows}
        id={(row) => row.id}
        columns={[
          {
            name: 'email',
            head: t('adminMembers.member'),
            title: true,
            cell: (row) => (
              <span className="wrap-anywhere">
                {row.display_name || row.email}
                {row.display_name && (
                  <span className="block text-xs font-normal text-soft">{row.email}</span>
                )}
              </span>
            ),
          },
          {
            name: 'role',
            head: t('adminMembers.role'),
            cell: (row) => (
              <span className="md:whitespace-nowrap">
                {t(`roles.${row.role}`)}
                <span className="block text-xs text-soft">{t(`adminInvitations.purposes.${row.purpose}`)}</span>
              </span>
            ),
          },
          { name: 'status', head: t('adminMembers.status'), cell: (row) => <Status of={row.status} /> },
          { name: 'expires', head: t('adminMembers.expires'), cell: (row) => <When at={row.expires_at} /> },
          {
            name: 'by',
            head: t('adminInvitations.by'),
            cell: (row) => (
              <span className="wrap-anywhere">{row.invited_by ?? t('adminInvitations.byToken')}</span>
            ),
          },
          {
            name: 'actions',
            head: '',
            end: true,
            wide: true,
            optional: (row) => writes && (row.status === 'pending' || row.status === 'expired'),
            cell: (row) =>
              writes &&
              (row.status === 'pending' || row.status === 'expired') && (
                <span className="flex flex-wrap gap-2 md:flex-nowrap md:justify-end">
                  <Button
                    aria-label={t('adminInvitations.renewOf', { name: row.email })}
                    onClick={() => setRenewing(row)}
                  >
                    {t('adminInvitations.renew')}
                  </Button>
                  <Button
                    look="danger"
                    aria-label={t('adminMembers.revokeOf', { name: row.email })}
                    onClick={() => setRevoking(row)}
                  >
                    {t('adminMembers.revoke')}
                  </Button>
                </span>
              ),
          },
        ]}
      />
      <Confirm
        open={renewing !== null}
        onClose={() => setRenewing(null)}
        title={t('adminInvitations.renewTitle', { name: renewing?.email })}
        action={t('adminInvitations.renew')}
        onConfirm={async () => {
          setMade(await ok(api.POST('/api/admin/invitations/{id}/renew', at(renewing!))))
          await refresh(...CHANGED)
        }}
      >
        <p>{t('adminInvitations.renewEffect')}</p>
      </Confirm>
      <Confirm
        open={revoking !== null}
        onClose={() => setRevoking(null)}
        title={t('adminInvitations.revokeTitle', { name: revoking?.email })}
        action={t('adminMembers.revoke')}
        onConfirm={async () => {
          await ok(api.POST('/api/admin/invitations/{id}/revoke', at(revoking!)))
          toast(t('adminInvitations.revoked'))
          await refresh(...CHANGED)
        }}
      >
        <p>{t('adminInvitations.revokeEffect')}</p>
        <p className="text-soft">{t('adminInvitations.revokeStays')}</p>
      </Confirm>
      <LinkMade made={made} onClose={() => setMade(null)} />
    </>
  )
}

function Status({ of }: { of: Invitation['status'] }) {
  const { t } = useWords()
  const label = t(`adminInvitations.statuses.${of}`)
  if (of === 'pending') return <ToneBadge tone="good" icon="clock" label={label} />
  if (of === 'expired') return <ToneBadge tone="warn" icon="warning" label={label} />
  return <ToneBadge tone="idle" icon={of === 'accepted' ? 'check' : 'stop'} label={label} />
}

const shape = z.object({
  email: z.string().check(z.trim(), z.regex(/^\S+@\S+\.\S+$/, 'email')),
  display_name: z.string().check(z.trim()),
  role: z.enum(ROLES),
  valid_days: z.string(),
})

type Fields = z.infer<typeof shape>

/** The button that invites, and all that follows. */
export function Invite() {
  const { t } = useWords()
  const [inviting, setInviting] = useState(false)
  const [made, setMade] = useState<Made | null>(null)
  const close = () => setInviting(false)
  return (
    <>
      <Button look="main" icon="plus" onClick={() => setInviting(true)}>
        {t('adminInvitations.invite')}
      </Button>
      <Dialog
        open={inviting}
        onClose={close}
        title={t('adminInvitations.invite')}
        about={t('adminInvitations.inviteAbout')}
      >
        <InviteForm
          onClose={close}
          onDone={(done) => {
            close()
            setMade(done)
          }}
        />
      </Dialog>
      <LinkMade made={made} onClose={() => setMade(null)} />
    </>
  )
}

function InviteForm({ onClose, onDone }: { onClose: () => void; onDone: (made: Made) => void }) {
  const { t } = useWords()
  const refresh = useRefresh()
  const editor = useEditor<Fields>({
    resolver: zodResolver(shape),
    start: { email: '', display_name: '', role: 'member', valid_days: '7' },
    save: async ({ valid_days, display_name, ...said }) => {
      // Whoever is a member already keeps the name they have.
      const named = display_name ? { display_name } : {}
      const body = { ...said, ...named, valid_days: Number(valid_days) }
      const made = await ok(api.POST('/api/admin/invitations', { body }))
      await refresh(...CHANGED)
      onDone(made)
    },
  })
  const { form, tied } = editor
  const role = form.watch('role')
  return (
    <EditorForm editor={editor} action={t('adminInvitations.make')} onClose={onClose}>
      <TextField label={t('auth.email')} type="email" autoComplete="off" maxLength={254} {...tied('email')} />
      <TextField
        label={t('adminMembers.displayName')}
        hint={t('adminInvitations.nameHint')}
        autoComplete="off"
        maxLength={200}
        {...tied('display_name')}
      />
      <div className="grid gap-4 sm:grid-cols-2">
        <SelectField label={t('adminMembers.role')} hint={t(`adminMembers.roleHints.${role}`)} {...tied('role')}>
          {ROLES.map((one) => (
            <option key={one} value={one}>
              {t(`roles.${one}`)}
            </option>
          ))}
        </SelectField>
        <SelectField label={t('adminInvitations.valid')} {...tied('valid_days')}>
          {DAYS.map((count) => (
            <option key={count} value={count}>
              {t('adminInvitations.days', { count })}
            </option>
          ))}
        </SelectField>
      </div>
    </EditorForm>
  )
}

/** For one member: a first link, or one to another password for who forgot theirs. */
export function LinkFor({ member }: { member: Member }) {
  const { t } = useWords()
  const refresh = useRefresh()
  const [asking, setAsking] = useState(false)
  const [made, setMade] = useState<Made | null>(null)
  const name = member.display_name || member.email
  const action = member.has_password ? t('adminInvitations.resetLink') : t('adminInvitations.joinLink')
  return (
    <>
      <Button icon="key" onClick={() => setAsking(true)}>
        {action}
      </Button>
      <Confirm
        open={asking}
        onClose={() => setAsking(false)}
        title={
          member.has_password
            ? t('adminInvitations.resetTitle', { name })
            : t('adminInvitations.joinTitle', { name })
        }
        action={t('adminInvitations.make')}
        onConfirm={async () => {
          setMade(await ok(api.POST('/api/admin/invitations', { body: { email: member.email, valid_days: 7 } })))
          await refresh(...CHANGED)
        }}
      >
        {member.has_password && <p>{t('adminInvitations.resetEffect')}</p>}
        <p>{t('adminInvitations.replaces')}</p>
      </Confirm>
      <LinkMade made={made} onClose={() => setMade(null)} />
    </>
  )
}

/** The link, which is shown once, and whether it is on its way already. */
function LinkMade({ made, onClose }: { made: Made | null; onClose: () => void }) {
  const { t } = useWords()
  return (
    <Dialog
      open={made !== null}
      onClose={onClose}
      title={made?.purpose === 'reset' ? t('adminInvitations.resetLink') : t('adminInvitations.joinLink')}
    >
      {made && (
        <div className="flex flex-col gap-3 wrap-anywhere">
          <p>{t('adminInvitations.once', { email: made.email })}</p>
          <Snippet code={made.link} label={t('adminInvitations.link')} />
          <p role="status">
            {made.mailed
              ? t('adminInvitations.mailed', { email: made.email })
              : made.mail_error
                ? t('adminInvitations.notMailed')
                : t('adminInvitations.noMail')}{' '}
            {made.mail_error && <span lang="en">({made.mail_error})</span>}
          </p>
          <p className="text-soft">
            {t('adminInvitations.until')} <When at={made.expires_at} utc />
          </p>
        </div>
      )}
      <DialogActions>
        <Button look="main" onClick={onClose}>
          {t('adminSetup.done')}
        </Button>
      </DialogActions>
    </Dialog>
  )
}
