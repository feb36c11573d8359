/** A key for a member, and its secret, which is shown once; the wizard uses both as well. */
import { zodResolver } from '@hookform/resolvers/zod'
import * as z from 'zod/mini'

import type { Allocation } from '@/api/admin-setup'
import { api, ok } from '@/api/client'
import { type KeyWithSecret, useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { readCount } from '@/lib/money'
import { Snippet } from '@/ui/copy'
import { CheckField, TextField } from '@/ui/field'

import { Boxes, EditorForm, useEditor } from './setup-parts'

const shape = z.object({
  name: z.string().check(z.trim(), z.minLength(1, 'required')),
  allocation_ids: z.array(z.string()).check(z.minLength(1, 'some')),
  expires_at: z.string(),
  token_budget: z
    .string()
    .check(z.refine((text) => text.trim() === '' || readCount(text) !== null, { error: 'count' })),
  one_shot: z.boolean(),
})

type Fields = z.infer<typeof shape>

export function KeyForm({
  memberId,
  allocations,
  start = {},
  onClose,
  onDone,
}: {
  memberId: string
  allocations: Allocation[]
  start?: Partial<Fields>
  onClose?: () => void
  onDone: (key: KeyWithSecret) => void
}) {
  const { t } = useWords()
  const refresh = useRefresh()
  const editor = useEditor<Fields>({
    resolver: zodResolver(shape),
    start: {
      name: '',
      allocation_ids: allocations.length === 1 ? [allocations[0]!.id] : [],
      expires_at: '',
      token_budget: '',
      one_shot: false,
      ...start,
    },
    save: async ({ expires_at, token_budget, ...said }) => {
      const made = await ok(
        api.POST('/api/admin/keys', {
          body: {
            ...said,
            member_id: memberId,
            limits: [],
            expires_at: expires_at ? new Date(expires_at).toISOString() : null,
            token_budget: token_budget.trim() ? readCount(token_budget) : null,
          },
        }),
      )
      await refresh(['admin', 'keys'])
      onDone(made)
    },
  })
  const { form, tied } = editor
  return (
    <EditorForm editor={editor} action={t('adminMembers.addKey')} {...(onClose ? { onClose } : {})}>
      <TextField
        label={t('adminModels.name')}
        hint={t('adminMembers.keyNameHint')}
        autoComplete="off"
        maxLength={200}
        {...tied('name')}
      />
      <Boxes
        legend={t('adminMembers.opens')}
        hint={t('adminMembers.opensHint')}
        error={tied('allocation_ids').error}
      >
        {allocations.map((one) => (
          <CheckField
            key={one.id}
            value={one.id}
            label={one.name}
            hint={one.models.join(', ')}
            {...form.register('allocation_ids')}
          />
        ))}
      </Boxes>
      <div className="grid gap-4 sm:grid-cols-2">
        <TextField
          label={t('adminMembers.expires')}
          type="datetime-local"
          hint={t('adminMembers.expiresHint')}
          {...tied('expires_at')}
        />
        <TextField
          label={t('adminMembers.budget')}
          hint={t('adminMembers.budgetHint')}
          autoComplete="off"
          {...tied('token_budget')}
        />
      </div>
      <CheckField label={t('adminMembers.oneShot')} hint={t('adminMembers.oneShotHint')} {...form.register('one_shot')} />
    </EditorForm>
  )
}

export function KeyShown({ secret }: { secret: string }) {
  const { t } = useWords()
  return (
    <div className="flex flex-col gap-3">
      <p>{t('adminMembers.keyOnce')}</p>
      <Snippet code={secret} label={t('adminMembers.keySecret')} />
    </div>
  )
}
