/** The router: one route for each page of the table, and the frame around all of them. */
import {
  Navigate,
  createRootRoute,
  createRoute,
  createRouter,
  lazyRouteComponent,
} from '@tanstack/react-router'

import { PAGES, home } from '@/pages'
import { Problem } from '@/ui/page'

import { Frame } from './frame'
import { useSession } from './gate'
import { NotFound } from './not-found'

const root = createRootRoute({
  component: Frame,
  notFoundComponent: NotFound,
  errorComponent: ({ error }) => <Problem error={error} retry={() => window.location.reload()} />,
})

function Home() {
  return <Navigate to={home(useSession().member.role)} replace />
}

export const router = createRouter({
  routeTree: root.addChildren([
    createRoute({ getParentRoute: () => root, path: '/', component: Home }),
    ...PAGES.map(({ path, load }) =>
      createRoute({ getParentRoute: () => root, path, component: lazyRouteComponent(load) }),
    ),
  ]),
  defaultPreload: 'intent',
  scrollRestoration: true,
  // Ids stay as they are in addresses: without quotes around what looks like a number.
  parseSearch: (text) => Object.fromEntries(new URLSearchParams(text)),
  stringifySearch: (search) => {
    const given = Object.entries(search).filter(([, value]) => value !== undefined && value !== '')
    const text = new URLSearchParams(given as [string, string][]).toString()
    return text && `?${text}`
  },
})
