/** Members: who signs in, as what, and what they may use. */
import { useInfiniteQuery } from '@tanstack/react-query'
import { useState } from 'react'

import { type Member, type MembersAsked, foundMembersQuery } from '@/api/admin-setup'
import { useWords } from '@/i18n'
import { Button, TextLink } from '@/ui/button'
import { Dialog } from '@/ui/dialog'
import { SelectField } from '@/ui/field'
import { Filters } from '@/ui/filters'
import { When } from '@/ui/format'
import { ToneBadge } from '@/ui/meter'
import { Answered, Card, Empty, Page } from '@/ui/page'
import { SearchField } from '@/ui/search-field'
import { DataTable } from '@/ui/table'

import { Invitations, Invite } from './invitations'
import { MemberForm } from './member-form'
import { OneMember, StatusBadge } from './one-member'
import { useAsked, useMayWrite } from './setup-parts'

export default function AdminMembers() {
  const { asked } = useAsked('/admin/members')
  return asked.id ? <OneMember key={asked.id} id={asked.id} /> : <AllMembers />
}

const ROLES = ['admin', 'auditor', 'member'] as const
const STATUSES = ['active', 'disabled'] as const

/** What the address asks for, as the server is asked for it. */
function wanted(asked: Record<string, string | undefined>): MembersAsked {
  const role = ROLES.find((one) => one === asked.role)
  const status = STATUSES.find((one) => one === asked.status)
  return { ...(asked.q && { q: asked.q }), ...(role && { role }), ...(status && { status }) }
}

function AllMembers() {
  const { t } = useWords()
  const writes = useMayWrite()
  const { asked, ask } = useAsked('/admin/members')
  const members = useInfiniteQuery(foundMembersQuery(wanted(asked)))
  const [adding, setAdding] = useState(false)
  const close = () => setAdding(false)
  const filtered = asked.q || asked.role || asked.status
  return (
    <Page
      title={t('nav.adminMembers')}
      about={t('adminMembers.about')}
      actions={
        writes && (
          <>
            <Button icon="plus" onClick={() => setAdding(true)}>
              {t('adminMembers.add')}
            </Button>
            <Invite />
          </>
        )
      }
    >
      <Card flush>
        <Answered of={members}>
          {({ pages }) => {
            const rows = pages.flatMap((page) => page.items)
            return (
              <>
                <Filters framed>
                  <SearchField
                    label={t('adminSetup.search')}
                    value={asked.q ?? ''}
                    onAsk={(q) => ask({ q })}
                  />
                  <SelectField
                    label={t('adminMembers.role')}
                    value={asked.role ?? ''}
                    onChange={(event) => ask({ role: event.target.value })}
                  >
                    <option value="">{t('common.all')}</option>
                    {ROLES.map((one) => (
                      <option key={one} value={one}>
                        {t(`roles.${one}`)}
                      </option>
                    ))}
                  </SelectField>
                  <SelectField
                    label={t('adminMembers.status')}
                    value={asked.status ?? ''}
                    onChange={(event) => ask({ status: event.target.value })}
                  >
                    <option value="">{t('common.all')}</option>
                    {STATUSES.map((one) => (
                      <option key={one} value={one}>
                        {t(`adminMembers.statuses.${one}`)}
                      </option>
                    ))}
                  </SelectField>
                </Filters>
                {rows.length === 0 ? (
                  !filtered ? (
                    <Empty icon="people" title={t('adminMembers.none')}>
                      {t('adminMembers.noneHint')}
                    </Empty>
                  ) : (
                    <Empty icon="search" title={t('adminSetup.nothingFound')} />
                  )
                ) : (
                  <Members rows={rows} />
                )}
                {members.hasNextPage && (
                  <div className="border-t border-line p-3 text-center">
                    <Button
                      icon="down"
                      busy={members.isFetchingNextPage}
                      onClick={() => void members.fetchNextPage()}
                    >
                      {t('common.more')}
                    </Button>
                  </div>
                )}
              </>
            )
          }}
        </Answered>
      </Card>
      <Invitations />
      <Dialog open={adding} onClose={close} title={t('adminMembers.add')}>
        <MemberForm onClose={close} onDone={close} />
      </Dialog>
    </Page>
  )
}

function Members({ rows }: { rows: Member[] }) {
  const { t } = useWords()
  return (
    <DataTable
      caption={t('nav.adminMembers')}
      rows={rows}
      id={(row) => row.id}
      columns={[
        {
          name: 'name',
          head: t('adminMembers.member'),
          title: true,
          cell: (row) => (
            <>
              <TextLink to="/admin/members" search={{ id: row.id }}>
                {row.display_name || row.email}
              </TextLink>
              {row.display_name && (
                <span className="block text-xs font-normal text-soft">{row.email}</span>
              )}
            </>
          ),
        },
        { name: 'role', head: t('adminMembers.role'), cell: (row) => t(`roles.${row.role}`) },
        { name: 'status', head: t('adminMembers.status'), cell: (row) => <StatusBadge status={row.status} /> },
        { name: 'password', head: t('auth.password'), cell: (row) => <PasswordState member={row} /> },
        { name: 'added', head: t('adminSetup.added'), cell: (row) => <When at={row.created_at} /> },
      ]}
    />
  )
}

export function PasswordState({ member }: { member: Member }) {
  const { t } = useWords()
  if (!member.has_password) return <span className="text-soft">{t('adminMembers.noPassword')}</span>
  if (member.must_change_password) {
    return <ToneBadge tone="idle" icon="clock" label={t('adminMembers.mustChange')} />
  }
  return <>{t('adminMembers.ownPassword')}</>
}
