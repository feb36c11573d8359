/** What every page is made of: its head, its sections, and what stands where there is nothing. */
import { type ReactNode, useEffect, useRef } from 'react'

import { useWords } from '@/i18n'
import { explain } from '@/i18n/errors'

import { Button } from './button'
import { Icon, type IconName } from './icons'

let arrived = false

/** One for each page: its title heads it, and the window; it is where one is when one comes to it. */
export function Page({
  title,
  about,
  actions,
  children,
}: {
  title: string
  about?: ReactNode
  actions?: ReactNode
  children: ReactNode
}) {
  const head = useRef<HTMLHeadingElement>(null)
  useEffect(() => {
    document.title = `${title} · Spendgate`
  }, [title])
  useEffect(() => {
    // Whoever hears the page instead of seeing it is taken to what is new; not when it is the first.
    if (arrived) head.current?.focus({ preventScroll: true })
    arrived = true
  }, [])
  return (
    <div className="mx-auto flex w-full max-w-6xl flex-col gap-5">
      <header className="flex flex-wrap items-start justify-between gap-x-6 gap-y-3">
        <div className="min-w-0">
          <h1 ref={head} tabIndex={-1} className="text-xl font-semibold tracking-tight">
            {title}
          </h1>
          {about && <p className="mt-0.5 max-w-prose text-soft">{about}</p>}
        </div>
        {actions && <div className="flex flex-wrap items-center gap-2">{actions}</div>}
      </header>
      {children}
    </div>
  )
}

/** A framed part of a page. */
export function Card({
  title,
  actions,
  flush = false,
  className = '',
  children,
}: {
  title?: ReactNode
  actions?: ReactNode
  /** What is inside reaches the frame: tables do. */
  flush?: boolean
  className?: string
  children: ReactNode
}) {
  return (
    <section
      className={`min-w-0 overflow-hidden rounded-xl border border-line bg-card shadow-card ${className}`}
    >
      {(title || actions) && (
        <header className="flex flex-wrap items-center justify-between gap-x-4 gap-y-2 border-b border-line px-4 py-2.5">
          <h2 className="font-semibold">{title}</h2>
          {actions && <div className="flex flex-wrap gap-2">{actions}</div>}
        </header>
      )}
      <div className={flush ? '' : 'p-4'}>{children}</div>
    </section>
  )
}

/** Where there is nothing yet: why, and what to do next. */
export function Empty({
  icon,
  title,
  children,
  actions,
}: {
  icon: IconName
  title: string
  children?: ReactNode
  actions?: ReactNode
}) {
  return (
    <div className="flex flex-col items-center gap-2 px-4 py-10 text-center">
      <span className="grid size-11 place-items-center rounded-full bg-sunk text-soft">
        <Icon name={icon} className="size-5" />
      </span>
      <p className="font-semibold">{title}</p>
      {children && <div className="max-w-md text-soft">{children}</div>}
      {actions && <div className="mt-2 flex flex-wrap justify-center gap-2">{actions}</div>}
    </div>
  )
}

/** What went wrong, in the reader's language, with what helps to find it in the logs. */
export function Problem({
  error,
  retry,
  className = '',
}: {
  error: unknown
  retry?: (() => void) | undefined
  className?: string
}) {
  const { t, language } = useWords()
  const { title, detail, requestId } = explain(error, t, language)
  return (
    <div
      role="alert"
      className={`flex flex-wrap items-start gap-3 rounded-xl border border-bad/40 bg-bad-wash p-3.5 text-bad-ink ${className}`}
    >
      <Icon name="warning" className="mt-0.5 size-5" />
      <div className="min-w-0 flex-1 max-sm:basis-[calc(100%-2rem)]">
        <p className="font-semibold">{title}</p>
        {detail && <p lang={detail.lang}>{detail.text}</p>}
        {requestId && (
          <p className="mt-1 text-xs">
            {t('errors.requestId')} <code className="font-mono">{requestId}</code>
          </p>
        )}
      </div>
      {retry && (
        <Button onClick={retry} icon="rotate">
          {t('common.retry')}
        </Button>
      )}
    </div>
  )
}

export function Loading() {
  const { t } = useWords()
  return (
    <div role="status" className="flex flex-col gap-3 p-1">
      <span className="sr-only">{t('common.loading')}</span>
      {[70, 95, 45].map((width) => (
        <span
          key={width}
          aria-hidden="true"
          className="h-4 animate-pulse rounded bg-sunk"
          style={{ width: `${width}%` }}
        />
      ))}
    </div>
  )
}

interface Asked<T> {
  data: T | undefined
  error: unknown
  refetch: () => unknown
}

/** What a query answered; until then, that it is on its way or what went wrong. */
export function Answered<T>({ of, children }: { of: Asked<T>; children: (data: T) => ReactNode }) {
  if (of.data !== undefined) {
    // What is known stays in view while the server is away, and says that it is not current.
    return (
      <>
        {of.error ? <Problem error={of.error} retry={() => void of.refetch()} /> : null}
        {children(of.data)}
      </>
    )
  }
  if (of.error) return <Problem error={of.error} retry={() => void of.refetch()} />
  return <Loading />
}
