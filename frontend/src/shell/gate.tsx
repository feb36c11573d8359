/**
 * The gate: who has no session signs in here, on the address they came for, and stays on it.
 *
 * So nothing redirects to where an address says; and whoever's session ends goes on where they were.
 */
import { useQuery, useQueryClient } from '@tanstack/react-query'
import { useLocation } from '@tanstack/react-router'
import { type ReactNode, Suspense, createContext, lazy, use } from 'react'

import { useLive } from '@/api/live'
import { type Session, sessionQuery } from '@/api/queries'
import { Problem } from '@/ui/page'

import { Outside, SignIn } from './sign-in'

// Their forms are not part of the first load.
const NewPassword = lazy(() => import('./new-password'))
const Invitation = lazy(() => import('./invitation'))

const SessionContext = createContext<Session | null>(null)

/** The session, within what the gate lets see. */
export function useSession(): Session {
  const session = use(SessionContext)
  if (session === null) throw new Error('nobody has signed in')
  return session
}

export function Gate({ children }: { children: ReactNode }) {
  const session = useQuery(sessionQuery)
  // Whoever has a link needs no session, and whichever there is goes when it is used.
  if (useLocation().pathname === '/invitation') {
    return (
      <Suspense>
        <Invitation />
      </Suspense>
    )
  }
  if (session.data === undefined) {
    if (!session.error) return null
    return (
      <Outside>
        <Problem error={session.error} retry={() => void session.refetch()} />
      </Outside>
    )
  }
  if (session.data === null) return <SignIn />
  if (session.data.must_change_password) {
    return (
      <Suspense>
        <NewPassword />
      </Suspense>
    )
  }
  return (
    <SessionContext value={session.data}>
      <Listening />
      {children}
    </SessionContext>
  )
}

/** Only who is signed in hears of anything. */
function Listening(): null {
  useLive(useQueryClient())
  return null
}
