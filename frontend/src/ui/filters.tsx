/** What stands around a list: the filters above it, and what shows more of it below. */
import type { ReactNode } from 'react'

import { useWords } from '@/i18n'

import { Button } from './button'
import { SelectField } from './field'

/** Filters side by side, two to a row on phones; `framed` inside a card, above its list. */
export function Filters({
  label,
  framed = false,
  children,
}: {
  label?: string
  framed?: boolean
  children: ReactNode
}) {
  const { t } = useWords()
  return (
    <form
      role="search"
      aria-label={label ?? t('common.filter')}
      onSubmit={(event) => event.preventDefault()}
      className={`grid grid-cols-2 items-end gap-3 md:grid-cols-[repeat(auto-fill,minmax(9rem,1fr))] [&>:has([type=search])]:col-span-2 ${framed ? 'border-b border-line px-4 py-3' : ''}`}
    >
      {children}
    </form>
  )
}

/** One of several, or all of them: ''. */
export function Choice({
  label,
  value = '',
  onChange,
  options,
  all = true,
}: {
  label: string
  value?: string | undefined
  onChange: (value: string) => void
  /** Each with what it is called. */
  options: Iterable<readonly [value: string, name: string]>
  /** Whether none of them may be chosen. */
  all?: boolean
}) {
  const { t } = useWords()
  return (
    <SelectField label={label} value={value} onChange={(event) => onChange(event.target.value)}>
      {all && <option value="">{t('common.all')}</option>}
      {[...options].map(([one, name]) => (
        <option key={one} value={one}>
          {name}
        </option>
      ))}
    </SelectField>
  )
}

interface Paged {
  hasNextPage: boolean
  isFetchingNextPage: boolean
  fetchNextPage: () => unknown
}

/** Below a list of which there is more. */
export function More({ of }: { of: Paged }) {
  const { t } = useWords()
  if (!of.hasNextPage) return null
  return (
    <div className="flex justify-center border-t border-line p-3">
      <Button icon="down" busy={of.isFetchingNextPage} onClick={() => void of.fetchNextPage()}>
        {t('common.more')}
      </Button>
    </div>
  )
}
