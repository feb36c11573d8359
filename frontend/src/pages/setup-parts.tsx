/** What the admin's pages of setting up share: forms in dialogs, filters in the address. */
import { useMutation } from '@tanstack/react-query'
import { useNavigate, useSearch } from '@tanstack/react-router'
import type { ReactNode } from 'react'
import {
  type DefaultValues,
  type FieldPath,
  type FieldValues,
  type Resolver,
  useForm,
} from 'react-hook-form'

import { useWords } from '@/i18n'
import { fieldError } from '@/i18n/errors'
import { useSession } from '@/shell/gate'
import { Button } from '@/ui/button'
import { Snippet } from '@/ui/copy'
import { Dialog, DialogActions } from '@/ui/dialog'
import { Problem } from '@/ui/page'

/** Auditors see everything and change nothing: what changes something is not offered to them. */
export function useMayWrite(): boolean {
  return useSession().member.role === 'admin'
}

/** What is asked for in the address, and how to ask for something else: a filter survives a reload. */
export function useAsked(path: string) {
  const asked = useSearch({ strict: false }) as Record<string, string | undefined>
  const navigate = useNavigate()
  const ask = (more: Record<string, string | undefined>) =>
    void navigate({ to: path, search: { ...asked, ...more } as never, replace: true })
  return { asked, ask }
}

/** What of a body differs from what is stored: all that an edit sends. */
export function differing<Body extends object>(before: Body, after: Body): Partial<Body> {
  const said = Object.entries(after).filter(
    ([name, value]) => JSON.stringify(value) !== JSON.stringify(before[name as keyof Body]),
  )
  return Object.fromEntries(said) as Partial<Body>
}

/** A form whose fields the server has a say in as well. Messages of the shape are keys of words. */
export function useEditor<Fields extends FieldValues>({
  resolver,
  start,
  save,
}: {
  resolver: Resolver<Fields>
  start: DefaultValues<Fields>
  save: (given: Fields) => Promise<unknown>
}) {
  const { t } = useWords()
  const form = useForm<Fields>({ resolver, defaultValues: start })
  const saving = useMutation({ mutationFn: save })
  /** Ties a field; the server may know it by another name. */
  const tied = (name: FieldPath<Fields>, theirs: string = name) => {
    const { error } = form.getFieldState(name, form.formState)
    const wrong = error?.message ? t(`adminSetup.errors.${error.message}`) : undefined
    return { ...form.register(name), error: wrong ?? fieldError(saving.error, theirs) }
  }
  return {
    form,
    tied,
    error: saving.error,
    busy: saving.isPending,
    submit: form.handleSubmit((given) => saving.mutateAsync(given).catch(() => {})),
  }
}

interface Editor {
  error: unknown
  busy: boolean
  submit: (event?: React.BaseSyntheticEvent) => unknown
}

/** The frame of a form in a dialog: what went wrong above, what ends it below. */
export function EditorForm({
  editor,
  action,
  onClose,
  children,
}: {
  editor: Editor
  action: string
  onClose?: () => void
  children: ReactNode
}) {
  const { t } = useWords()
  return (
    <form noValidate onSubmit={(event) => void editor.submit(event)} className="flex flex-col gap-4">
      {editor.error ? <Problem error={editor.error} /> : null}
      {children}
      <DialogActions>
        {onClose && <Button onClick={onClose}>{t('common.cancel')}</Button>}
        <Button type="submit" look="main" busy={editor.busy}>
          {action}
        </Button>
      </DialogActions>
    </form>
  )
}

/** A secret that is shown once: gone with the dialog. */
export function SecretDialog({
  title,
  hint,
  label,
  secret,
  onClose,
}: {
  title: string
  hint: string
  label: string
  secret: string | null
  onClose: () => void
}) {
  const { t } = useWords()
  return (
    <Dialog open={secret !== null} onClose={onClose} title={title} about={hint}>
      {secret && <Snippet code={secret} label={label} />}
      <DialogActions>
        <Button look="main" onClick={onClose}>
          {t('adminSetup.done')}
        </Button>
      </DialogActions>
    </Dialog>
  )
}

/** Several boxes under one heading. */
export function Boxes({
  legend,
  hint,
  error,
  children,
}: {
  legend: string
  hint?: string
  error?: string | undefined
  children: ReactNode
}) {
  return (
    <fieldset className="min-w-0">
      <legend className="font-medium">{legend}</legend>
      {hint && <p className="mb-1 text-xs text-soft">{hint}</p>}
      <div className="grid gap-x-4 sm:grid-cols-2">{children}</div>
      {error && <p className="text-xs font-medium text-bad-ink">{error}</p>}
    </fieldset>
  )
}

/** Names of facts and the facts, in two columns where there is room. */
export function Facts({ children }: { children: ReactNode }) {
  return (
    <dl className="grid grid-cols-[auto_1fr] gap-x-4 gap-y-1.5 max-sm:grid-cols-1 max-sm:gap-y-0 max-sm:[&>dd]:mb-1.5 [&>dt]:text-soft">
      {children}
    </dl>
  )
}

/** A model's name as it is written in requests. */
export function Slug({ children }: { children: ReactNode }) {
  return <code className="rounded bg-sunk px-1.5 py-0.5 font-mono text-xs">{children}</code>
}
