/** The router: one route for each page of the table, and the frame around all of them. */
import {
  Navigate,
  createRootRoute,
  createRoute,
  createRouter,
  lazyRouteComponent,
} from '@tanstack/react-router'

import { startAdminWords } from '@/i18n'
import { PAGES, type PageEntry, home } from '@/pages'
import { Problem } from '@/ui/page'

import { Frame } from './frame'
import { useSession } from './gate'
import { NotFound } from './not-found'

const root = createRootRoute({
  component: Frame,
  notFoundComponent: () => <NotFound />,
  errorComponent: ({ error }) => <Problem error={error} retry={() => window.location.reload()} />,
})

function Home() {
  return <Navigate to={home(useSession().member.role)} replace />
}

/** Load a page with the words that it is written in. */
async function withWords({ section, load }: PageEntry) {
  const [page] = await Promise.all([load(), section === 'admin' && startAdminWords()])
  return page
}

export const router = createRouter({
  routeTree: root.addChildren([
    createRoute({ getParentRoute: () => root, path: '/', component: Home }),
    ...PAGES.map((page) =>
      createRoute({
        getParentRoute: () => root,
        path: page.path,
        component: lazyRouteComponent(() => withWords(page)),
      }),
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
