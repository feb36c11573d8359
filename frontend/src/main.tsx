/** The dashboard's beginning: theme, words, session, router. */
import './app.css'

import { QueryClientProvider } from '@tanstack/react-query'
import { RouterProvider } from '@tanstack/react-router'
import { StrictMode } from 'react'
import { createRoot } from 'react-dom/client'

import { setOnProblem } from '@/api/client'
import { queryClient, sessionQuery } from '@/api/queries'
import { startErrorWords, startWords } from '@/i18n'
import { router } from '@/shell/router'
import { startTheme } from '@/shell/theme'

startTheme()
setOnProblem(startErrorWords)
void queryClient.prefetchQuery(sessionQuery)
await startWords()

createRoot(document.getElementById('root')!).render(
  <StrictMode>
    <QueryClientProvider client={queryClient}>
      <RouterProvider router={router} />
    </QueryClientProvider>
  </StrictMode>,
)
