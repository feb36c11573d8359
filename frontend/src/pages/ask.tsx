/** Asking for more of a cap, for a while; an admin decides. */
import { zodResolver } from '@hookform/resolvers/zod'
import { useMutation } from '@tanstack/react-query'
import { useForm } from 'react-hook-form'
import * as z from 'zod/mini'

import { api, ok } from '@/api/client'
import { type Standing, useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { fieldError } from '@/i18n/errors'
import type { Meter } from '@/lib/limits'
import { readAmount } from '@/lib/money'
import { isoDate } from '@/lib/time'
import { Button } from '@/ui/button'
import { DialogActions } from '@/ui/dialog'
import { SelectField, TextArea, TextField } from '@/ui/field'
import { Problem } from '@/ui/page'
import { toast } from '@/ui/toast'

const isMore = ({ meter, amount }: { meter: Meter; amount: string }) =>
  Number(readAmount(meter, amount) ?? 0) > 0

const shape = z
  .object({
    meter: z.enum(['usd', 'tokens']),
    amount: z.string(),
    until: z.enum(['day', 'period', 'date']),
    date: z.string(),
    reason: z.string().check(z.trim(), z.minLength(1, 'reason')),
  })
  .check(
    z.refine((given) => isMore(given), {
      path: ['amount'],
      error: 'amount',
    }),
    z.refine((given) => given.until !== 'date' || given.date !== '', {
      path: ['date'],
      error: 'date',
    }),
  )

type Fields = z.infer<typeof shape>

interface Props {
  standing: Standing
  onClose: () => void
}

export default function AskForm({ standing, onClose }: Props) {
  const { t } = useWords()
  const refresh = useRefresh()
  const meters = (['usd', 'tokens'] as const).filter((meter) =>
    meter === 'usd'
      ? standing.quota_cost_usd_per_month !== null
      : standing.quota_tokens_per_month !== null,
  )
  const first = meters.find((meter) => meter === standing.binds?.meter) ?? meters[0]!
  const form = useForm<Fields>({
    resolver: zodResolver(shape),
    defaultValues: { meter: first, amount: '', until: 'period', date: '', reason: '' },
  })
  const [meter, until] = form.watch(['meter', 'until'])
  const { errors } = form.formState
  const ask = useMutation({
    mutationFn: (given: Fields) =>
      ok(
        api.POST('/api/me/requests', {
          body: {
            allocation_id: standing.id,
            meter: given.meter,
            amount: readAmount(given.meter, given.amount)!,
            expires: given.until === 'date' ? given.date : given.until,
            reason: given.reason,
          },
        }),
      ),
    onSuccess: async () => {
      await refresh(['me', 'requests'])
      toast(t('ask.sent'))
      onClose()
    },
  })
  const words = (name: keyof Fields, field: string) =>
    errors[name] ? t(`ask.errors.${errors[name].message}`) : fieldError(ask.error, field)
  return (
    <form
      onSubmit={form.handleSubmit((given) => ask.mutateAsync(given).catch(() => {}))}
      className="flex flex-col gap-4"
    >
      {ask.error && <Problem error={ask.error} />}
      <div className="grid gap-4 sm:grid-cols-2">
        <SelectField label={t('ask.meter')} {...form.register('meter')}>
          {meters.map((one) => (
            <option key={one} value={one}>
              {t(`meters.${one}`)}
            </option>
          ))}
        </SelectField>
        <TextField
          label={t('ask.amount')}
          inputMode={meter === 'usd' ? 'decimal' : 'text'}
          autoComplete="off"
          hint={t(`ask.amountHint.${meter}`)}
          error={words('amount', 'amount')}
          {...form.register('amount')}
        />
        <SelectField label={t('ask.until')} {...form.register('until')}>
          {(['period', 'day', 'date'] as const).map((one) => (
            <option key={one} value={one}>
              {t(`ask.untils.${one}`)}
            </option>
          ))}
        </SelectField>
        {until === 'date' && (
          <TextField
            label={t('ask.date')}
            type="date"
            min={isoDate(new Date())}
            error={words('date', 'expires')}
            {...form.register('date')}
          />
        )}
      </div>
      <TextArea
        label={t('ask.reason')}
        hint={t('ask.reasonHint')}
        maxLength={500}
        error={words('reason', 'reason')}
        {...form.register('reason')}
      />
      <DialogActions>
        <Button onClick={onClose}>{t('common.cancel')}</Button>
        <Button type="submit" look="main" busy={ask.isPending}>
          {t('ask.send')}
        </Button>
      </DialogActions>
    </form>
  )
}
