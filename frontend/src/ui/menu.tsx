/** Menus that open from a button. */
import { DropdownMenu as Radix } from 'radix-ui'
import type { ReactNode } from 'react'

import { Icon, type IconName } from './icons'

export function Menu({ trigger, children }: { trigger: ReactNode; children: ReactNode }) {
  return (
    <Radix.Root modal={false}>
      <Radix.Trigger asChild>{trigger}</Radix.Trigger>
      <Radix.Portal>
        <Radix.Content
          align="end"
          sideOffset={6}
          collisionPadding={8}
          className="animate-appear z-50 min-w-52 rounded-xl border border-line bg-card p-1.5 shadow-card"
        >
          {children}
        </Radix.Content>
      </Radix.Portal>
    </Radix.Root>
  )
}

const ITEM =
  'flex w-full items-center gap-2.5 rounded-lg px-2.5 py-1.5 text-left outline-none ' +
  'data-highlighted:bg-accent-wash data-highlighted:text-accent-strong cursor-pointer'

export function MenuItem({
  icon,
  onSelect,
  children,
}: {
  icon?: IconName
  onSelect: () => void
  children: ReactNode
}) {
  return (
    <Radix.Item className={ITEM} onSelect={onSelect}>
      {icon && <Icon name={icon} />}
      {children}
    </Radix.Item>
  )
}

export function MenuChoice({
  value,
  onChange,
  label,
  options,
}: {
  value: string
  onChange: (value: string) => void
  label: string
  options: { value: string; label: string; lang?: string; icon?: IconName }[]
}) {
  return (
    <>
      <Radix.Label className="px-2.5 pt-1.5 pb-1 text-xs font-medium text-soft">{label}</Radix.Label>
      <Radix.RadioGroup value={value} onValueChange={onChange}>
        {options.map((option) => (
          <Radix.RadioItem key={option.value} value={option.value} className={ITEM}>
            {option.icon && <Icon name={option.icon} />}
            <span lang={option.lang} className="flex-1">
              {option.label}
            </span>
            <Radix.ItemIndicator>
              <Icon name="check" />
            </Radix.ItemIndicator>
          </Radix.RadioItem>
        ))}
      </Radix.RadioGroup>
    </>
  )
}

export function MenuRule() {
  return <Radix.Separator className="my-1.5 h-px bg-line" />
}

export function MenuHead({ children }: { children: ReactNode }) {
  return <div className="px-2.5 py-1.5">{children}</div>
}
