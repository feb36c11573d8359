/** Form fields: a label, what is wrong, and a hint, all tied to their control. */
import { type ComponentProps, type ReactNode, useId } from 'react'

import { Icon } from './icons'

const CONTROL =
  'w-full rounded-lg border border-edge bg-card px-2.5 py-1.5 min-h-9 text-ink ' +
  'aria-invalid:border-bad disabled:opacity-60 disabled:bg-sunk'

interface Own {
  label: ReactNode
  hint?: ReactNode | undefined
  error?: string | undefined
  /** For screen readers only: where what is around it says what it is. */
  hiddenLabel?: boolean
  className?: string
}

interface Tied {
  id: string
  'aria-invalid': true | undefined
  'aria-describedby': string | undefined
}

/** Any control with its label: `children` is given what ties them. */
export function Field({
  label,
  hint,
  error,
  hiddenLabel = false,
  className = '',
  children,
}: Own & { children: (tied: Tied) => ReactNode }) {
  const id = useId()
  const described = [error && `${id}-error`, hint && `${id}-hint`].filter(Boolean).join(' ')
  return (
    <div className={`flex min-w-0 flex-col gap-1 ${className}`}>
      <label htmlFor={id} className={hiddenLabel ? 'sr-only' : 'font-medium'}>
        {label}
      </label>
      {children({
        id,
        'aria-invalid': error ? true : undefined,
        'aria-describedby': described || undefined,
      })}
      {hint && (
        <p id={`${id}-hint`} className="text-xs text-soft">
          {hint}
        </p>
      )}
      {error && (
        <p id={`${id}-error`} className="flex items-start gap-1 text-xs font-medium text-bad-ink">
          <Icon name="warning" className="mt-0.5" />
          {error}
        </p>
      )}
    </div>
  )
}

export function TextField({
  label,
  hint,
  error,
  hiddenLabel,
  className,
  ...input
}: Own & ComponentProps<'input'>) {
  return (
    <Field {...{ label, hint, error, hiddenLabel, className } as Own}>
      {(tied) => <input {...tied} className={CONTROL} {...input} />}
    </Field>
  )
}

export function TextArea({
  label,
  hint,
  error,
  hiddenLabel,
  className,
  ...input
}: Own & ComponentProps<'textarea'>) {
  return (
    <Field {...{ label, hint, error, hiddenLabel, className } as Own}>
      {(tied) => <textarea rows={3} {...tied} className={CONTROL} {...input} />}
    </Field>
  )
}

export function SelectField({
  label,
  hint,
  error,
  hiddenLabel,
  className,
  children,
  ...select
}: Own & ComponentProps<'select'>) {
  return (
    <Field {...{ label, hint, error, hiddenLabel, className } as Own}>
      {(tied) => (
        <span className="relative block">
          <select {...tied} className={`${CONTROL} appearance-none truncate pr-8`} {...select}>
            {children}
          </select>
          <Icon name="down" className="pointer-events-none absolute top-2.5 right-2.5 text-soft" />
        </span>
      )}
    </Field>
  )
}

export function CheckField({
  label,
  hint,
  ...input
}: { label: ReactNode; hint?: ReactNode } & ComponentProps<'input'>) {
  const id = useId()
  return (
    <label className="flex items-start gap-2.5 rounded-lg py-1">
      <input
        type="checkbox"
        className="mt-1 size-4 flex-none accent-(--accent)"
        aria-describedby={hint ? id : undefined}
        {...input}
      />
      <span>
        <span className="font-medium">{label}</span>
        {hint && (
          <span id={id} className="block text-xs text-soft">
            {hint}
          </span>
        )}
      </span>
    </label>
  )
}
