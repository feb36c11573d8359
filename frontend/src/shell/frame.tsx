/** The frame: navigation beside every page, and the account's menu above it. */
import { Link, Outlet, useLocation, useNavigate } from '@tanstack/react-router'
import { Dialog as Radix } from 'radix-ui'
import { useRef, useState } from 'react'

import { api, ok } from '@/api/client'
import { enter } from '@/api/queries'
import { LANGUAGES, type Language, speak, useWords } from '@/i18n'
import { PAGES, type PageEntry, sees } from '@/pages'
import { IconButton } from '@/ui/button'
import { Icon, Logo } from '@/ui/icons'
import { Menu, MenuChoice, MenuHead, MenuItem, MenuRule } from '@/ui/menu'
import { Toasts } from '@/ui/toast'

import { Gate, useSession } from './gate'
import { NotFound } from './not-found'
import { type Theme, chooseTheme, useTheme } from './theme'

export function Frame() {
  return (
    <>
      <Gate>
        <Inside />
      </Gate>
      <Toasts />
    </>
  )
}

function Inside() {
  const { t } = useWords()
  const main = useRef<HTMLElement>(null)
  const { role } = useSession().member
  const { pathname } = useLocation()
  const section = pathname.startsWith('/admin/') ? 'admin' : 'own'
  return (
    <div className="min-h-dvh lg:grid lg:grid-cols-[14rem_1fr]">
      <button
        type="button"
        onClick={() => main.current?.focus()}
        className="sr-only z-60 rounded-lg bg-card px-3 py-2 focus:not-sr-only focus:fixed focus:top-2 focus:left-2"
      >
        {t('nav.skip')}
      </button>
      <aside className="hidden border-r border-line bg-card lg:block">
        <div className="sticky top-0 flex h-dvh flex-col gap-4 overflow-y-auto px-3 py-4">
          <Brand />
          <Nav />
        </div>
      </aside>
      <div className="flex min-w-0 flex-col">
        <header className="sticky top-0 z-30 flex items-center gap-2 border-b border-line bg-card/95 px-3 py-1.5 backdrop-blur lg:border-0 lg:bg-transparent lg:px-6 lg:backdrop-blur-none">
          <NavDrawer />
          <div className="lg:hidden">
            <Brand />
          </div>
          <div className="ml-auto flex items-center gap-1">
            <LanguageMenu />
            <ThemeMenu />
            <AccountMenu />
          </div>
        </header>
        <main
          ref={main}
          tabIndex={-1}
          className="min-w-0 flex-1 px-3 py-4 pb-16 sm:px-5 lg:px-6 lg:pt-1"
        >
          {sees(role, section) ? <Outlet /> : <NotFound forbidden />}
        </main>
      </div>
    </div>
  )
}

function Brand() {
  return (
    <Link to="/" className="flex items-center gap-2 rounded-lg px-2 py-1 font-semibold no-underline">
      <Logo className="size-7" />
      <span className="text-base tracking-tight">Spendgate</span>
    </Link>
  )
}

function Nav({ onGo }: { onGo?: () => void }) {
  const { t } = useWords()
  const { role } = useSession().member
  const sections = (['own', 'admin'] as const)
    .filter((section) => sees(role, section))
    .map((section) => ({
      section,
      pages: PAGES.filter((page) => page.section === section && page.icon),
    }))
    .filter(({ pages }) => pages.length)
  return (
    <nav aria-label={t('nav.label')} className="flex flex-col gap-4">
      {sections.map(({ section, pages }) => (
        <div key={section}>
          {sections.length > 1 && (
            <p className="px-2.5 pb-1 text-xs font-medium text-soft">{t(`nav.sections.${section}`)}</p>
          )}
          <ul className="flex flex-col gap-0.5">
            {pages.map((page) => (
              <li key={page.path}>
                <NavLink page={page} onGo={onGo} />
              </li>
            ))}
          </ul>
        </div>
      ))}
    </nav>
  )
}

function NavLink({ page, onGo }: { page: PageEntry; onGo: (() => void) | undefined }) {
  const { t } = useWords()
  return (
    <Link
      to={page.path}
      {...(onGo ? { onClick: onGo } : {})}
      className="flex min-h-9 items-center gap-2.5 rounded-lg px-2.5 py-1.5 text-soft no-underline hover:bg-sunk hover:text-ink aria-[current=page]:bg-accent-wash aria-[current=page]:font-semibold aria-[current=page]:text-accent-strong"
    >
      <Icon name={page.icon!} className="size-4.5" />
      {t(`nav.${page.name}`)}
    </Link>
  )
}

/** The navigation on small screens. */
function NavDrawer() {
  const { t } = useWords()
  const [open, setOpen] = useState(false)
  return (
    <Radix.Root open={open} onOpenChange={setOpen}>
      <Radix.Trigger asChild>
        <IconButton icon="menu" label={t('nav.open')} className="lg:hidden" />
      </Radix.Trigger>
      <Radix.Portal>
        <Radix.Overlay className="fixed inset-0 z-40 bg-[rgb(8_16_14/0.5)]" />
        <Radix.Content
          aria-describedby={undefined}
          className="fixed inset-y-0 left-0 z-50 flex w-72 max-w-[85vw] flex-col gap-4 overflow-y-auto border-r border-line bg-card px-3 py-4"
        >
          <div className="flex items-center justify-between">
            <Radix.Title className="px-2 text-base font-semibold">{t('nav.label')}</Radix.Title>
            <Radix.Close asChild>
              <IconButton icon="close" label={t('common.close')} />
            </Radix.Close>
          </div>
          <Nav onGo={() => setOpen(false)} />
        </Radix.Content>
      </Radix.Portal>
    </Radix.Root>
  )
}

function LanguageMenu() {
  const { t, language } = useWords()
  return (
    <Menu trigger={<IconButton icon="globe" label={t('account.language')} />}>
      <MenuChoice
        label={t('account.language')}
        value={language}
        onChange={(value) => void speak(value as Language)}
        options={Object.entries(LANGUAGES).map(([value, label]) => ({ value, label, lang: value }))}
      />
    </Menu>
  )
}

function ThemeMenu() {
  const { t } = useWords()
  const theme = useTheme()
  const icons = { light: 'sun', dark: 'moon', system: 'screen' } as const
  return (
    <Menu trigger={<IconButton icon={icons[theme]} label={t('account.theme')} />}>
      <MenuChoice
        label={t('account.theme')}
        value={theme}
        onChange={(value) => chooseTheme(value as Theme)}
        options={(['light', 'dark', 'system'] as const).map((value) => ({
          value,
          label: t(`account.themes.${value}`),
          icon: icons[value],
        }))}
      />
    </Menu>
  )
}

function AccountMenu() {
  const { t } = useWords()
  const { member } = useSession()
  const navigate = useNavigate()
  const go = () => void navigate({ to: '/account' })
  return (
    <Menu
      trigger={
        <button
          type="button"
          aria-label={t('account.menu', { name: member.display_name })}
          className="flex min-h-9 items-center gap-2 rounded-lg px-1.5 text-soft hover:bg-sunk hover:text-ink sm:px-2.5"
        >
          <Icon name="user" className="size-5" />
          <span className="max-w-40 truncate max-sm:hidden">{member.display_name}</span>
          <Icon name="down" className="max-sm:hidden" />
        </button>
      }
    >
      <MenuHead>
        <p className="font-semibold">{member.display_name}</p>
        <p className="text-xs text-soft">
          {member.email} · {t(`roles.${member.role}`)}
        </p>
      </MenuHead>
      <MenuRule />
      <MenuItem icon="user" onSelect={go}>
        {t('nav.account')}
      </MenuItem>
      <MenuItem
        icon="close"
        onSelect={async () => {
          await ok(api.POST('/api/auth/logout')).catch(() => {})
          enter(null)
        }}
      >
        {t('account.signOut')}
      </MenuItem>
    </Menu>
  )
}
