/**
 * The gate: who has no session signs in here, on the address they came for, and stays on it.
 *
 * So nothing redirects to where an address says; and whoever's session ends goes on where they were.
 */
import { useQuery } from '@tanstack/react-query'
import { type ReactNode, Suspense, createContext, lazy, use } from 'react'

import { type Session, sessionQuery } from '@/api/queries'
import { Problem } from '@/ui/page'

import { Outside, SignIn } from './sign-in'

// Its forms are not part of the first load.
const NewPassword = lazy(() => import('./new-password'))

const SessionContext = createContext<Session | null>(null)

/** The session, within what the gate lets see. */
export function useSession(): Session {
  const session = use(SessionContext)
  if (session === null) throw new Error('nobody has signed in')
  return session
}

export function Gate({ children }: { children: ReactNode }) {
  const session = useQuery(sessionQuery)
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
  return <SessionContext value={session.data}>{children}</SessionContext>
}
