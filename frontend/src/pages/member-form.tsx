/** The form of a member; the first-run wizard uses it as well. */
import { zodResolver } from '@hookform/resolvers/zod'
import * as z from 'zod/mini'

import type { Member } from '@/api/admin-setup'
import { api, ok } from '@/api/client'
import { useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { PASSWORD_LENGTH_MIN } from '@/shell/password'
import { CheckField, SelectField, TextField } from '@/ui/field'
import { toast } from '@/ui/toast'

import { EditorForm, differing, useEditor } from './setup-parts'

const ROLES = ['member', 'auditor', 'admin'] as const

const shape = z.object({
  email: z.string().check(z.trim(), z.regex(/^\S+@\S+\.\S+$/, 'email')),
  display_name: z.string().check(z.trim()),
  role: z.enum(ROLES),
  password: z
    .string()
    .check(z.refine((text) => text === '' || text.length >= PASSWORD_LENGTH_MIN, { error: 'short' })),
  must_change_password: z.boolean(),
})

type Fields = z.infer<typeof shape>

export function MemberForm({
  member,
  onClose,
  onDone,
}: {
  member?: Member
  onClose?: () => void
  onDone: (member: Member) => void
}) {
  const { t } = useWords()
  const refresh = useRefresh()
  const editor = useEditor<Fields>({
    resolver: zodResolver(shape),
    start: {
      email: member?.email ?? '',
      display_name: member?.display_name ?? '',
      role: member?.role ?? 'member',
      password: '',
      must_change_password: member?.must_change_password ?? true,
    },
    save: async ({ password, ...said }) => {
      const must = { must_change_password: said.must_change_password && (password !== '' || member?.has_password === true) }
      const given = { ...said, ...must }
      const fresh = password ? { password } : {}
      const done = member
        ? await ok(
            api.PATCH('/api/admin/members/{id}', {
              params: { path: { id: member.id } },
              body: { ...differing<typeof given>(member, given), ...fresh },
            }),
          )
        : await ok(api.POST('/api/admin/members', { body: { ...given, ...fresh } }))
      await refresh(['admin', 'members'])
      toast(t('adminSetup.saved', { name: done.display_name || done.email }))
      onDone(done)
    },
  })
  const { form, tied } = editor
  const [role, password] = form.watch(['role', 'password'])
  return (
    <EditorForm
      editor={editor}
      action={member ? t('common.save') : t('adminMembers.add')}
      {...(onClose ? { onClose } : {})}
    >
      <TextField label={t('auth.email')} type="email" autoComplete="off" maxLength={254} {...tied('email')} />
      <div className="grid gap-4 sm:grid-cols-2">
        <TextField label={t('adminMembers.displayName')} autoComplete="off" maxLength={200} {...tied('display_name')} />
        <SelectField label={t('adminMembers.role')} hint={t(`adminMembers.roleHints.${role}`)} {...tied('role')}>
          {ROLES.map((one) => (
            <option key={one} value={one}>
              {t(`roles.${one}`)}
            </option>
          ))}
        </SelectField>
      </div>
      <TextField
        label={member?.has_password ? t('password.fresh') : t('auth.password')}
        type="password"
        autoComplete="new-password"
        hint={
          member?.has_password
            ? t('adminMembers.passwordKept')
            : t('adminMembers.passwordHint', { count: PASSWORD_LENGTH_MIN })
        }
        {...tied('password')}
      />
      {(password !== '' || member?.has_password) && (
        <CheckField
          label={t('adminMembers.mustChangeLabel')}
          hint={t('adminMembers.mustChangeHint')}
          {...form.register('must_change_password')}
        />
      )}
    </EditorForm>
  )
}
