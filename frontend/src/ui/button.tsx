/** Buttons, and links that look like them. */
import { Link } from '@tanstack/react-router'
import type { ComponentProps } from 'react'

import { Icon, type IconName } from './icons'

type Look = 'main' | 'plain' | 'quiet' | 'danger' | 'destroy'

const LOOKS: Record<Look, string> = {
  main: 'bg-accent text-on-accent hover:bg-accent-strong border-transparent',
  plain: 'bg-card text-ink border-line hover:border-edge',
  quiet: 'bg-transparent text-accent border-transparent hover:bg-accent-wash',
  // What leads to the question, and what answers it.
  danger: 'bg-card text-bad-ink border-line hover:bg-bad-wash hover:border-bad',
  destroy: 'bg-bad text-on-bad border-transparent hover:bg-bad-ink',
}

const SHAPE =
  'inline-flex items-center justify-center gap-1.5 rounded-lg border px-3 py-1.5 min-h-9 font-medium wrap-break-word ' +
  'text-sm leading-tight text-center transition-colors disabled:opacity-55 disabled:cursor-not-allowed no-underline'

interface Own {
  look?: Look
  icon?: IconName
  /** Waits for the server: cannot be pressed again. */
  busy?: boolean
}

export function Button({
  look = 'plain',
  icon,
  busy = false,
  className = '',
  children,
  disabled,
  type = 'button',
  ...more
}: Own & ComponentProps<'button'>) {
  return (
    <button
      type={type}
      className={`${SHAPE} ${LOOKS[look]} ${className}`}
      disabled={disabled || busy}
      aria-busy={busy || undefined}
      {...more}
    >
      {icon && <Icon name={icon} />}
      {children}
    </button>
  )
}

/** A button that is only an icon; `label` is what it is called. */
export function IconButton({
  icon,
  label,
  className = '',
  type = 'button',
  ...more
}: { icon: IconName; label: string } & ComponentProps<'button'>) {
  return (
    <button
      type={type}
      aria-label={label}
      title={label}
      className={`inline-grid size-9 flex-none place-items-center rounded-lg text-soft hover:bg-sunk hover:text-ink ${className}`}
      {...more}
    >
      <Icon name={icon} className="size-5" />
    </button>
  )
}

/** Goes to another page of ours, with what it is to show. */
export function LinkButton({
  look = 'plain',
  icon,
  to,
  search,
  children,
}: Pick<Own, 'look' | 'icon'> & {
  to: string
  search?: Record<string, string | undefined>
  children: React.ReactNode
}) {
  return (
    <Link to={to} search={search as never} className={`${SHAPE} ${LOOKS[look]}`}>
      {icon && <Icon name={icon} />}
      {children}
    </Link>
  )
}

/** Leaves the pages: the browser goes there, and what is open here is gone. */
export function AwayButton({
  look = 'plain',
  icon,
  href,
  children,
}: Pick<Own, 'look' | 'icon'> & { href: string; children: React.ReactNode }) {
  return (
    <a href={href} className={`${SHAPE} ${LOOKS[look]}`}>
      {icon && <Icon name={icon} />}
      {children}
    </a>
  )
}

/** A file to keep, straight from the server. */
export function DownloadLink({ href, children }: { href: string; children: React.ReactNode }) {
  return (
    <a href={href} download className={`${SHAPE} ${LOOKS.plain}`}>
      <Icon name="download" />
      {children}
    </a>
  )
}

export function TextLink({
  to,
  search,
  children,
  ...more
}: {
  to: string
  search?: Record<string, string | undefined>
  children: React.ReactNode
  'aria-label'?: string
}) {
  return (
    <Link
      to={to}
      search={search as never}
      className="rounded-sm text-accent underline decoration-1 underline-offset-3 hover:decoration-2"
      {...more}
    >
      {children}
    </Link>
  )
}
