/** The form of one's own key: a new one, or less of one that there is. */
import { zodResolver } from '@hookform/resolvers/zod'
import { useMutation } from '@tanstack/react-query'
import { useState } from 'react'
import { useForm } from 'react-hook-form'
import * as z from 'zod/mini'

import { api, ok } from '@/api/client'
import { type Key, type KeyWithSecret, type Standing, useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { fieldError } from '@/i18n/errors'
import { readCount } from '@/lib/money'
import { Button } from '@/ui/button'
import { DialogActions } from '@/ui/dialog'
import { CheckField, TextField } from '@/ui/field'
import { LimitRows, type LimitRow, isLimitRow, limitRow, limitsOf } from '@/ui/limit-rows'
import { Problem } from '@/ui/page'

const shape = z.object({
  name: z.string().check(z.trim(), z.minLength(1, 'name')),
  allocations: z.array(z.string()).check(z.minLength(1, 'allocations')),
  expires: z.string(),
  oneShot: z.boolean(),
  budget: z
    .string()
    .check(z.refine((text) => text.trim() === '' || readCount(text) !== null, 'budget')),
})

type Fields = z.infer<typeof shape>

interface Props {
  /** What there is; none for a new one. */
  of?: Key
  allocations: Standing[]
  onClose: () => void
  onCreated?: (key: KeyWithSecret) => void
}

/** `<input type="datetime-local">` by the reader's clock. */
const localInput = (at: string) => {
  const date = new Date(at)
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 16)
}

const BUDGET = { meter: 'tokens', window: 'lifetime' }

export default function KeyForm({ of: known, allocations, onClose, onCreated }: Props) {
  const { t } = useWords()
  const refresh = useRefresh()
  const usable = allocations.filter((one) => one.status !== 'revoked')
  const form = useForm<Fields>({
    resolver: zodResolver(shape),
    defaultValues: {
      name: known?.name ?? '',
      allocations: known?.allocation_ids ?? (usable.length === 1 ? [usable[0]!.id] : []),
      expires: known?.expires_at ? localInput(known.expires_at) : '',
      oneShot: known?.one_shot ?? false,
      budget: known?.token_budget ? String(known.token_budget) : '',
    },
  })
  const [rows, setRows] = useState<LimitRow[]>(
    // The token budget has a field of its own.
    () =>
      known?.limits
        .filter((one) => one.meter !== BUDGET.meter || one.window !== BUDGET.window)
        .map(limitRow) ?? [],
  )
  const [checked, setChecked] = useState(false)
  const save = useMutation({
    mutationFn: async (given: Fields) => {
      const budget = given.budget.trim() === '' ? null : readCount(given.budget)
      const expires_at = given.expires === '' ? null : new Date(given.expires).toISOString()
      const common = { name: given.name, limits: limitsOf(rows) }
      if (known !== undefined) {
        // Only what was changed: a time to the minute is not the time to the second that it was.
        const { dirtyFields } = form.formState
        await ok(
          api.PATCH('/api/me/keys/{id}', {
            params: { path: { id: known.id } },
            body: {
              ...common,
              ...(dirtyFields.expires ? { expires_at } : {}),
              ...(dirtyFields.budget ? { token_budget: budget } : {}),
            },
          }),
        )
        return null
      }
      const body = {
        ...common,
        allocation_ids: given.allocations,
        expires_at,
        one_shot: given.oneShot,
        token_budget: budget,
      }
      return ok(api.POST('/api/me/keys', { body }))
    },
    onSuccess: async (created) => {
      await refresh(['me', 'keys'])
      onClose()
      if (created) onCreated?.(created)
    },
  })
  const { errors } = form.formState
  const words = (name: keyof Fields, field: string) =>
    errors[name]?.message ? t(`keys.errors.${errors[name].message}`) : fieldError(save.error, field)
  return (
    <form
      className="flex flex-col gap-4"
      onSubmit={(event) => {
        setChecked(true)
        void form.handleSubmit((given) => {
          if (rows.every(isLimitRow)) return save.mutateAsync(given).catch(() => {})
        })(event)
      }}
    >
      {save.error && <Problem error={save.error} />}
      {known && <p className="text-soft">{t('keys.tightenHint')}</p>}
      <TextField
        label={t('keys.name')}
        autoComplete="off"
        hint={t('keys.nameHint')}
        error={words('name', 'name')}
        {...form.register('name')}
      />
      {!known && (
        <fieldset className="flex flex-col gap-1">
          <legend className="font-medium">{t('keys.scope')}</legend>
          <p className="text-xs text-soft">{t('keys.scopeHint')}</p>
          {usable.map((one) => (
            <CheckField
              key={one.id}
              value={one.id}
              label={one.name}
              hint={one.models.join(', ')}
              {...form.register('allocations')}
            />
          ))}
          {words('allocations', 'allocation_ids') && (
            <p className="text-xs font-medium text-bad-ink">
              {words('allocations', 'allocation_ids')}
            </p>
          )}
        </fieldset>
      )}
      <div className="grid gap-4 sm:grid-cols-2">
        <TextField
          label={t('keys.expires')}
          type="datetime-local"
          hint={t('keys.expiresHint')}
          error={words('expires', 'expires_at')}
          {...form.register('expires')}
        />
        <TextField
          label={t('keys.budget')}
          autoComplete="off"
          hint={t('keys.budgetHint')}
          error={words('budget', 'token_budget')}
          {...form.register('budget')}
        />
      </div>
      <LimitRows
        rows={rows}
        onChange={setRows}
        checked={checked}
        error={fieldError(save.error, 'limits')}
      />
      {!known && (
        <CheckField
          label={t('keys.oneShot')}
          hint={t('keys.oneShotHint')}
          {...form.register('oneShot')}
        />
      )}
      <DialogActions>
        <Button onClick={onClose}>{t('common.cancel')}</Button>
        <Button type="submit" look="main" busy={save.isPending}>
          {known ? t('common.save') : t('keys.create')}
        </Button>
      </DialogActions>
    </form>
  )
}
