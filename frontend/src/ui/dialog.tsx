/** Dialogs: over the page, closed with Escape; focus goes back to where it came from. */
import { Dialog as Radix } from 'radix-ui'
import { type ReactNode, useRef, useState } from 'react'

import { useWords } from '@/i18n'

import { Button, IconButton } from './button'
import { Problem } from './page'

interface DialogProps {
  open: boolean
  onClose: () => void
  title: ReactNode
  /** Said after the title; what it is about. */
  about?: ReactNode
  wide?: boolean
  children: ReactNode
}

export function Dialog({ open, onClose, title, about, wide = false, children }: DialogProps) {
  const { t } = useWords()
  const opener = useRef<Element>(null)
  return (
    <Radix.Root open={open} onOpenChange={(to) => !to && onClose()}>
      <Radix.Portal>
        <Radix.Overlay className="fixed inset-0 z-40 bg-[rgb(8_16_14/0.5)]" />
        <Radix.Content
          className={`animate-appear fixed inset-x-0 bottom-0 z-50 mx-auto flex max-h-[92dvh] w-full flex-col rounded-t-2xl border border-line bg-card shadow-card sm:top-[8dvh] sm:bottom-auto sm:max-h-[84dvh] sm:rounded-2xl ${wide ? 'sm:max-w-3xl' : 'sm:max-w-lg'}`}
          // A click beside it would lose what was filled in, or a secret that is shown once.
          onInteractOutside={(event) => event.preventDefault()}
          onOpenAutoFocus={(event) => {
            opener.current = document.activeElement
            // Where one goes on: the first field, else the way back; not what closes it.
            const first = (event.currentTarget as Element).querySelector<HTMLElement>(
              '[data-body] :is(input, select, textarea, button):enabled',
            )
            if (!first) return
            event.preventDefault()
            first.focus()
          }}
          onCloseAutoFocus={(event) => {
            event.preventDefault()
            // What opened it may be gone by what was done in it.
            const back = opener.current?.isConnected ? opener.current : document.querySelector('main')
            ;(back as HTMLElement | null)?.focus()
          }}
          {...(about ? {} : { 'aria-describedby': undefined })}
        >
          <header className="flex items-start gap-3 border-b border-line py-3 pr-3 pl-5">
            <div className="min-w-0 flex-1 py-1">
              <Radix.Title className="text-base font-semibold">{title}</Radix.Title>
              {about && (
                <Radix.Description className="mt-0.5 text-soft">{about}</Radix.Description>
              )}
            </div>
            <Radix.Close asChild>
              <IconButton icon="close" label={t('common.close')} />
            </Radix.Close>
          </header>
          <div data-body className="overflow-y-auto px-5 py-4">{children}</div>
        </Radix.Content>
      </Radix.Portal>
    </Radix.Root>
  )
}

/** The row of buttons that ends a dialog; the last one is the one that does it. */
export function DialogActions({ children }: { children: ReactNode }) {
  return <div className="mt-5 flex flex-wrap justify-end gap-2">{children}</div>
}

/** Asks before something that cannot be taken back; `children` says what it will do. */
export function Confirm({
  open,
  onClose,
  title,
  action,
  look = 'destroy',
  onConfirm,
  children,
}: {
  open: boolean
  onClose: () => void
  title: ReactNode
  action: string
  /** `main` where nothing is lost. */
  look?: 'destroy' | 'main'
  onConfirm: () => Promise<unknown>
  children: ReactNode
}) {
  const { t } = useWords()
  const [busy, setBusy] = useState(false)
  const [error, setError] = useState<unknown>(null)
  const close = () => {
    setError(null)
    onClose()
  }
  return (
    <Dialog open={open} onClose={close} title={title}>
      <div className="flex flex-col gap-3">{children}</div>
      {error !== null && <Problem error={error} className="mt-4" />}
      <DialogActions>
        <Button onClick={close}>{t('common.cancel')}</Button>
        <Button
          look={look}
          busy={busy}
          onClick={async () => {
            setBusy(true)
            try {
              await onConfirm()
              close()
            } catch (caught) {
              setError(caught)
            } finally {
              setBusy(false)
            }
          }}
        >
          {action}
        </Button>
      </DialogActions>
    </Dialog>
  )
}
