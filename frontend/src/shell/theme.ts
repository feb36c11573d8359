/** The theme: what the reader chose, else what the system prefers, kept current. */
import { useSyncExternalStore } from 'react'

export type Theme = 'light' | 'dark' | 'system'

const CHOICE = 'spendgate.theme'
const dark = window.matchMedia('(prefers-color-scheme: dark)')
const listeners = new Set<() => void>()

export function chosenTheme(): Theme {
  const chosen = localStorage.getItem(CHOICE)
  return chosen === 'light' || chosen === 'dark' ? chosen : 'system'
}

function apply(): void {
  const chosen = chosenTheme()
  document.documentElement.dataset.theme =
    chosen === 'system' ? (dark.matches ? 'dark' : 'light') : chosen
  for (const listener of listeners) listener()
}

export function startTheme(): void {
  apply()
  dark.addEventListener('change', apply)
}

export function chooseTheme(theme: Theme): void {
  localStorage.setItem(CHOICE, theme)
  apply()
}

export function useTheme(): Theme {
  return useSyncExternalStore((listener) => {
    listeners.add(listener)
    return () => listeners.delete(listener)
  }, chosenTheme)
}
